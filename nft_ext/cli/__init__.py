"""The command line: `nft-ext info | demo | train | evaluate | sweep`. One file a command."""

from .main import main

__all__ = ["main"]
