"""From the sums kept per chip to figures with intervals. Knows no model and no file."""
