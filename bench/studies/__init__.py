"""Studies: each answers one question, with its own command."""
