"""python -m nft_ext.cli: the same as nft-ext."""

import sys

from nft_ext.cli import main

sys.exit(main())
