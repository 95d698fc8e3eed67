"""Training: `fit` keeps the best epoch of one training, `search_beta` the best of one training per beta.

`save`, `load` and `load_model` write and read checkpoints. A killed training continues (`fit(state=...)`), and
torchrun shares one training among several processes.
"""

from nft_ext.training.beta_search import BetaSearch, search_beta
from nft_ext.training.checkpoint import load, load_model, save
from nft_ext.training.fitting import fit
from nft_ext.training.history import History, NonFiniteLoss
from nft_ext.training.recipe import Recipe

__all__ = ["BetaSearch", "History", "NonFiniteLoss", "Recipe", "fit", "load", "load_model", "save", "search_beta"]
