"""nft-ext fetch: a published data set, downloaded, checked and put where the readers find it."""

from __future__ import annotations

import argparse


def add_parser(commands) -> None:
    from nft_ext.data import SOURCES

    parser = commands.add_parser("fetch", help="download a published data set, with its checksum")
    parser.add_argument("dataset", choices=tuple(SOURCES), metavar="NAME", help=", ".join(SOURCES))
    parser.add_argument(
        "--data-dir", metavar="DIR", help="folder to put it into, made if absent (default: NFT_EXT_DATA)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from nft_ext.data import fetch

    done = fetch(arguments.dataset, arguments.data_dir, progress=True)
    print(f"{arguments.dataset}: {'downloaded, checksum as published' if done else 'already there'}")
    return 0
