"""Shares the passes of an evaluation between processes, and keeps finished chips in a journal."""
