"""What every benchmark shares: cases, measuring, checking results, the table."""
