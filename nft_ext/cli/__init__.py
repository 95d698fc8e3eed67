"""The command line: nft-ext. One file a command."""

from .main import main

__all__ = ["main"]
