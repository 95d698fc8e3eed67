"""The command line: nft-ext. One file a command."""

from nft_ext.cli.main import main

__all__ = ["main"]
