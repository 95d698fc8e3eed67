"""The package's only version number. pyproject.toml, reports and checkpoints read it."""

__version__ = "0.3.0"
NOISE = "0.2"  # version of docs/reference/noise.md; the same version gives the same chips
