"""Studies: questions answered once, with their own commands."""
