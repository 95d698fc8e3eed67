"""The package's version: the only place that states it. pyproject.toml, reports and checkpoints read it from here."""

__version__ = "0.3.0"
NOISE = "0.2"  # the definition in docs/reference/noise.md: while it stays, a seed gives the same chips
