"""Runs that torchrun starts on each rank: torchrun ... torchrun_runs.py FOLDER. Leaves FOLDER/rankR.json."""

import json
import os
import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader, TensorDataset

import nft_ext as nft
from nft_ext.nn import step_key
from support.training_runs import TRAIN, VALIDATION, jitter, outcome, run, small_net, stopping_at, timeless

FOLDER, RANK = Path(sys.argv[1]), int(os.environ["RANK"])
SGD = {"optimizer": "sgd", "lr": 0.05, "batch_norm": False}
keys = []


def recorded(like, original=step_key.fresh_key):
    """The key of a training step, noted down."""
    key = original(like)
    if torch.is_grad_enabled():
        keys.append(key.tolist())
    return key


def summary(history):
    weights = {name: tensor.tolist() for name, tensor in history.model.state_dict().items()}
    found = {"weights": weights, "rows": timeless(history.rows), "keys": list(keys)}
    found["bits"] = outcome(history)
    keys.clear()
    return found


def refusal(**options):
    try:
        run(**options)
    except ValueError as error:
        return str(error)
    return "no refusal"


def first_entry(model, batch):
    return model(batch[0])


torch.set_num_threads(1)
step_key.fresh_key = recorded
results = {}
for method in ("vanilla", "noise", "ovf", "irs"):
    results[method] = summary(run(method, **SGD))
results["chip_per_rank"] = summary(run("noise", chip_per_rank=True, **SGD))
results["accumulate"] = summary(run("noise", accumulate=2, **SGD))
results["task"] = summary(run("noise", forward=first_entry, **SGD))
try:
    loader = DataLoader(TensorDataset(*TRAIN), batch_size=16)
    nft.fit(small_net(), nft.methods.Vanilla(), loader, VALIDATION, epochs=1, progress=False)
except TypeError as error:
    results["loader"] = str(error)
mine = FOLDER / f"files{RANK}"
mine.mkdir()
os.chdir(mine)  # every rank would write its own
results["batch norm"] = summary(run("ovf", augment=jitter, log="log.csv", checkpoint="best", progress=True))
try:
    run("ovf", augment=stopping_at(9, InterruptedError), state=FOLDER / "state", save_every=0)
except InterruptedError:
    keys.clear()
results["continued"] = summary(run("ovf", augment=jitter, state=FOLDER / "state"))
results["refused"] = [
    refusal(batch_size=15),
    refusal(seed=RANK),
    refusal(train=tuple(tensor[:3] for tensor in TRAIN)),
]
try:
    run("noise", augment=lambda x: x * float("nan") if RANK == 1 else x)  # the second rank's images alone
except ArithmeticError as error:
    results["nan"] = str(error)
(FOLDER / f"rank{RANK}.json").write_text(json.dumps(results))
