"""The report of an evaluation, as text, JSON, CSV and figures."""
