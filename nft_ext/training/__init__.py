"""Training: `fit` runs a method over data and keeps the best epoch, `search_beta` the best of four runs; checkpoints
hold what they found.

A run can be killed and continued (`fit(state=...)`), and shared among processes by torchrun.
"""

from nft_ext.training.beta_search import BetaSearch, search_beta
from nft_ext.training.checkpoint import load, load_model, save
from nft_ext.training.fitting import fit
from nft_ext.training.history import History, NonFiniteLoss
from nft_ext.training.recipe import Recipe

__all__ = ["BetaSearch", "History", "NonFiniteLoss", "Recipe", "fit", "load", "load_model", "save", "search_beta"]
