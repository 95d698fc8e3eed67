"""Small models and data of other tasks than images: regressions, dict batches, tagging, outputs in containers."""

from dataclasses import dataclass

import torch
from torch import nn

TOKENS, CLASSES = 20, 3


@dataclass
class Output:
    """What a model of a library returns."""

    logits: torch.Tensor
    hidden: torch.Tensor


class Tagger(nn.Module):
    """Token ids [B, T] -> Output with logits [B, T, C] per position, or [B, C] per sequence (`pooled`)."""

    def __init__(self, pooled=False):
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, 8)
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU())
        self.head = nn.Linear(16, CLASSES)
        self.pooled = pooled

    def forward(self, input_ids, attention_mask=None):
        hidden = self.body(self.embedding(input_ids))
        if attention_mask is not None:
            hidden = hidden * attention_mask.unsqueeze(-1)
        return Output(self.head(hidden.mean(dim=1) if self.pooled else hidden), hidden)


class TwoHeads(nn.Module):
    """[B, 5] -> {"mean": [B, 1], "spread": [B, 2]}."""

    def __init__(self):
        super().__init__()
        self.body, self.mean, self.spread = nn.Linear(5, 12), nn.Linear(12, 1), nn.Linear(12, 2)

    def forward(self, x):
        hidden = torch.relu(self.body(x))
        return {"mean": self.mean(hidden), "spread": self.spread(hidden)}


def tagger(pooled=False):
    torch.manual_seed(0)
    return Tagger(pooled)


def sequences(n=24, pooled=True, seed=1):
    """Items as a data set of transformers gives them: a class per sequence, or a tag per token (-100: none)."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for i in range(n):
        ids = torch.randint(TOKENS, (6,), generator=generator)
        mask = torch.arange(6) < 4 + i % 3
        tags = torch.where(mask, ids % CLASSES, -100)
        label = int(ids[0] % CLASSES) if pooled else tags
        found.append({"input_ids": ids, "attention_mask": mask.long(), "labels": label, "name": f"item {i}"})
    return found


def regression(n=48, seed=1):
    """Inputs [n, 5] and targets [n, 2]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 5, generator=generator)
    return x, torch.stack([x[:, 0] - x[:, 1], 0.5 * x[:, 2]], dim=1)


def regressor():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 2))


def tag_loss(logits, batch):
    """Cross-entropy of tags, classes last."""
    return nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
