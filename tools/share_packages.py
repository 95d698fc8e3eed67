"""Lets a virtual environment see the packages of the Python that runs this: python tools/share_packages.py FOLDER

Writes FOLDER/torch.txt, too: a constraint for pip that keeps the installed torch.
"""

import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

folder, mine = Path(sys.argv[1]).resolve(), sysconfig.get_path("purelib")
(theirs,) = folder.glob("lib/python*/site-packages")
# addsitedir reads the .pth files there, so editable installations are seen.
(theirs / "shared_packages.pth").write_text(f"import site; site.addsitedir({mine!r})\n")
(folder / "torch.txt").write_text(f"torch=={version('torch')}\n")
