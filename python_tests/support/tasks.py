"""Small networks and data of several tasks, in the shapes of model libraries, for tests of `monte_carlo`."""

from collections import UserDict

import torch
from torch import nn

import nft_ext as nft

NVM = nft.NVMDevice(sigma=0.4)


class Output(dict):
    """A mapping with attributes, as transformers' ModelOutput."""

    __getattr__ = dict.__getitem__


class Encoding(UserDict):
    """A mapping that is no dict, as transformers' BatchEncoding."""

    def __getattr__(self, name):
        try:
            return self.__dict__["data"][name]
        except KeyError:
            raise AttributeError(name) from None


class Encoder(nn.Module):
    """A transformer encoder that takes the arguments of BERT and returns an object with .logits."""

    def __init__(self, classes=4, per_token=False, vocabulary=30, width=16):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.head, self.per_token = nn.Linear(width, classes), per_token

    def forward(self, input_ids, attention_mask=None, labels=None):
        x = self.embedding(input_ids)
        scores = self.query(x) @ self.key(x).mT / x.shape[-1] ** 0.5
        if attention_mask is not None:
            scores = scores.masked_fill(attention_mask[:, None, :] == 0, -1e4)
        x = x + scores.softmax(-1) @ self.value(x)
        x = x + self.mlp(x)
        if not self.per_token:
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            x = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        output = Output(logits=self.head(x))
        if labels is not None:
            output["loss"] = nn.functional.cross_entropy(output.logits.flatten(0, -2), labels.flatten())
        return output


def encoder(**options):
    torch.manual_seed(0)
    return nft.convert(Encoder(**options), NVM).eval()


def sentences(count=20, length=7, classes=4):
    """A dict of tensors: token numbers, mask and class labels."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(2, length + 1, (count,), generator=generator)
    mask = (torch.arange(length) < lengths[:, None]).long()
    return {
        "input_ids": torch.randint(1, 30, (count, length), generator=generator) * mask,
        "attention_mask": mask,
        "labels": torch.randint(classes, (count,), generator=generator),
    }


def cut(batch, sizes):
    """A dict of tensors as several batches."""
    parts = {name: tensor.split(sizes) for name, tensor in batch.items()}
    return [dict(zip(parts, values)) for values in zip(*parts.values())]


def chips_of(model, runs, seed=0):
    """The networks with the programmed weights of every chip."""
    return [nft.program(model, seed=seed, draw=draw).eval() for draw in range(runs)]
