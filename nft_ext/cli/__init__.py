"""The command line: `nft-ext info | demo | fetch | train | evaluate`. One file a command."""

from .main import main

__all__ = ["main"]
