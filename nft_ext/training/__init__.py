"""Training: `fit` runs a method over data and keeps the best epoch; checkpoints hold what it found."""

from nft_ext.training.checkpoint import load, load_model, save
from nft_ext.training.fitting import fit
from nft_ext.training.history import History, NonFiniteLoss

__all__ = ["History", "NonFiniteLoss", "fit", "load", "load_model", "save"]
