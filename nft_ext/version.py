"""The package's version, read by reports and checkpoints."""

__version__ = "0.2.0"
NOISE = "0.2"  # the definition in docs/noise.md: while it stays, a seed gives the same chips
