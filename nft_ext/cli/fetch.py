"""nft-ext fetch: downloads a published data set, checks it and stores it where `load` finds it."""

from __future__ import annotations

import argparse


def add_parser(commands) -> None:
    from nft_ext.data import SOURCES

    parser = commands.add_parser("fetch", help="download a published data set and check it")
    parser.add_argument("dataset", choices=tuple(SOURCES), metavar="NAME", help=f"data set: {', '.join(SOURCES)}")
    parser.add_argument(
        "--data-dir", metavar="DIR", help="folder for the data, created if missing (default: $NFT_EXT_DATA)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from nft_ext.data import fetch

    done = fetch(arguments.dataset, arguments.data_dir, progress=True)
    print(f"{arguments.dataset}: {'downloaded, checksum correct' if done else 'already there'}")
    return 0
