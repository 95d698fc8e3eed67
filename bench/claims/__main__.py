"""Compares every figure of README and docs with the file it comes from: python -m bench.claims

Prints each figure that differs or has no entry. The exit status is then 1.
"""

from __future__ import annotations

import sys

from bench.claims.page import faults
from bench.claims.pages import PAGES


def main() -> int:
    found = [fault for page in PAGES for fault in faults(page)]
    print(*found, sep="\n", end="\n" if found else "")
    entries = sum(len(page.claims) for page in PAGES)
    print(f"{entries} entries on {len(PAGES)} pages: {len(found) or 'no'} faults")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
