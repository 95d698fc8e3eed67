"""The sums kept per chip, from which every metric is computed: a few float64 numbers."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

CALIBRATION_BINS = 15


@dataclass
class Tallies:
    """Sums over the images seen, one row per chip; S chips. float64, which holds counts exactly.

    Attributes:
        correct: [S] images whose label has the largest logit.
        loss_correct: [S] sum of -log p_label over the correct images (EKL's numerator).
        loss: [S] sum of -log p_label over all images.
        bin_images, bin_correct, bin_confidence: [S, 15] images, correct images and sum of the top probability, in 15
            bins of the top probability, (b/15, (b+1)/15].
        undefined: [S] images with an undefined softmax (a NaN or +inf logit). They count as wrong and enter no bin.
    """

    correct: Tensor
    loss_correct: Tensor
    loss: Tensor
    bin_images: Tensor
    bin_correct: Tensor
    bin_confidence: Tensor
    undefined: Tensor

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor, counted: Tensor | None = None) -> Tallies:
        """Sums of one batch. Reads nothing back to the host.

        Args:
            logits: [S, B, C] of S chips.
            labels: int64 [B], or [S, B] if the chips see different images.
            counted: bool [S, B], False for inferences to leave out; None: all count.
        """
        logits = logits.double()
        counted = counted if counted is not None else logits.new_ones(logits.shape[:2], dtype=torch.bool)
        log_p = logits.log_softmax(dim=2)
        undefined = log_p.isnan().any(dim=2) & counted
        correct = (logits.argmax(dim=2) == labels) & ~undefined & counted
        loss = -log_p.gather(2, labels.expand(len(logits), -1).unsqueeze(2)).squeeze(2)
        confidence = log_p.amax(dim=2).exp()
        bin_of = (confidence * CALIBRATION_BINS).ceil().sub(1).clamp(0, CALIBRATION_BINS - 1)
        # Compares with every bin, because the order of addition in scatter_add varies on CUDA.
        bins = torch.arange(CALIBRATION_BINS, device=logits.device, dtype=torch.float64)
        member = (bin_of.unsqueeze(2) == bins) & counted.unsqueeze(2)  # [S, B, 15]
        zero = confidence.new_zeros(())
        return cls(
            correct=correct.double().sum(dim=1),
            loss_correct=torch.where(correct, loss, zero).sum(dim=1),
            loss=torch.where(counted, loss, zero).sum(dim=1),
            bin_images=member.double().sum(dim=1),
            bin_correct=(member & correct.unsqueeze(2)).double().sum(dim=1),
            bin_confidence=torch.where(member, confidence.unsqueeze(2), zero).sum(dim=1),
            undefined=undefined.double().sum(dim=1),
        )

    def __add__(self, other: Tallies) -> Tallies:
        """Sums of the same chips over the images of both."""
        return Tallies(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def chips(self, count: int) -> Tallies:
        """The first `count` chips, on the CPU."""
        return Tallies(**{f.name: getattr(self, f.name)[:count].cpu() for f in fields(self)})

    def __len__(self) -> int:
        """Number of chips."""
        return len(self.correct)

    @property
    def images(self) -> Tensor:
        """Number of images that each chip saw, [S]."""
        return self.bin_images.sum(dim=1) + self.undefined

    @classmethod
    def concatenate(cls, parts: list[Tallies]) -> Tallies:
        """All chips of `parts`, in order; empty for an empty list."""
        shape = {f.name: (0, CALIBRATION_BINS) if f.name.startswith("bin_") else (0,) for f in fields(cls)}
        empty = {name: torch.zeros(size, dtype=torch.float64) for name, size in shape.items()}
        return cls(**{name: torch.cat([empty[name], *(getattr(p, name) for p in parts)]) for name in empty})

    def ece(self) -> float:
        """Expected calibration error, pooled over chips: sum over bins of |correct - confidence| / images."""
        gap = (self.bin_correct.sum(dim=0) - self.bin_confidence.sum(dim=0)).abs()
        return float(gap.sum() / self.bin_images.sum())
