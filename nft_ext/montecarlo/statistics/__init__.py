"""Turns the sums of each chip into figures with intervals. Uses no model and no file."""
