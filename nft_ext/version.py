"""The package's version, read by reports and checkpoints."""

__version__ = "0.2.0"
