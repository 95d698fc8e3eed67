"""What every layer may use: checks of input, files, progress. Imports nothing of nft_ext but this folder."""
