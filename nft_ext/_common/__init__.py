"""Helpers for every other folder: input checks, files, progress. This folder imports nothing else of nft_ext."""
