"""Training: `fit` runs a method over data and keeps the best epoch, `search_beta` the best of four runs; checkpoints
hold what they found."""

from nft_ext.training.beta_search import BetaSearch, search_beta
from nft_ext.training.checkpoint import load, load_model, save
from nft_ext.training.fitting import fit
from nft_ext.training.history import History, NonFiniteLoss

__all__ = ["BetaSearch", "History", "NonFiniteLoss", "fit", "load", "load_model", "save", "search_beta"]
