"""Where the repository's files are, for tests that read or run them."""

import os
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
FILES = TESTS / "files"
SHARED = ROOT.parent / "shared"  # data and published numbers beside a checkout; may be missing


def importing(**more: str) -> dict[str, str]:
    """The environment of a process that imports nft_ext, bench and support as the tests do."""
    path = os.pathsep.join([str(ROOT), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, **more}
