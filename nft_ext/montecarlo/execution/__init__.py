"""Runs chips: a network and its data become sums per chip."""
