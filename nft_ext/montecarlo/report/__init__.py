"""What an evaluation gives its user: the report, as text, JSON, CSV and pictures."""
