"""`python -m nft_ext.cli` is the same command as `nft-ext`."""

import sys

from nft_ext.cli import main

sys.exit(main())
