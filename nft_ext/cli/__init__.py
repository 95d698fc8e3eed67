"""The command line: `nft-ext info | demo | train | evaluate`. One file a command."""

from .main import main

__all__ = ["main"]
