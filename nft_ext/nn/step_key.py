"""One key per training step, for all layers and forwards of the step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn

from nft_ext.nn.base import noisy_layers
from nft_ext.ops.keys import fresh_key
from nft_ext.ops.operands import local_part


class StepKey:
    """The chips of one training step: one key (seed, draw) from torch's generator, forward n on chip draw + n.

    One draw per step costs less than one per layer and forward. It is also safer: the key comes from outside of
    whatever a backward may run again, such as a compiled graph or a checkpointed region.

    Inside `nft_ext.chips`, and for a model without noisy layers, nothing is drawn and nothing changes.

    Args:
        model: a prepared model.
    """

    def __init__(self, model: nn.Module) -> None:
        layers = list(noisy_layers(model).values())
        self._layers = [] if any(layer.noise_state()[1] is not None for layer in layers) else layers
        self._key = fresh_key(local_part(self._layers[0].anchor)) if self._layers else None

    @contextlib.contextmanager
    def forward(self, n: int = 0) -> Iterator[None]:
        """Context for the n-th forward of the step; equal numbers are equal chips."""
        if self._key is None:
            yield
            return
        keys: dict = {}
        before = [(layer, layer.noise_state()) for layer in self._layers]
        try:
            for layer in self._layers:
                device = layer.anchor.device
                if device not in keys:
                    keys[device] = self._numbered(n).to(device)
                layer.set_key(keys[device])
            yield
        finally:
            for layer, state in before:
                layer.set_noise_state(state)

    def _numbered(self, n: int) -> Tensor:
        assert self._key is not None
        key = self._key
        if n:
            key = key.clone()
            key[:, 1] += n
        return key
