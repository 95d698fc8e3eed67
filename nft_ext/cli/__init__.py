"""The command line, `nft-ext`: one file per command."""

from nft_ext.cli.main import main

__all__ = ["main"]
