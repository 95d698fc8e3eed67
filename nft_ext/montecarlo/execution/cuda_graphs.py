"""A whole Monte Carlo step as one CUDA graph, which the host launches once per step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nft_ext._common.bfloat16 import PRECISIONS, autocast
from nft_ext._common.checks import boolean, fail, integer, one_of
from nft_ext.montecarlo.execution.evaluated_model import check_model, eval_mode
from nft_ext.nn import noisy_layers
from nft_ext.nn.contexts import chips as chips_of
from nft_ext.nn.contexts import hold
from nft_ext.ops import build_info
from nft_ext.ops.keys import noise_key

WARM_UPS = 3  # libraries choose algorithms and allocate workspaces here, because the capture does not allow it


class MonteCarloGraph:
    """`model` on S programmed chips, captured once and replayed for any images of the same shape and any chips.

    A loop over 200 chips, 8 per replay:

        step = MonteCarloGraph(model, images, chips=8)
        for draws in batched(range(200), 8):
            logits = step(images, nft.noise_key(seed, draws, device="cuda"))      # [8 * B, C], chip-major

    The model runs in eval mode without gradients, as in `nft.monte_carlo`. Sigma and the noise's on/off state are those
    of the capture. Weights may be trained or loaded in place between replays: every replay reads them. The next replay
    overwrites the output.

    Args:
        model: a converted model on one CUDA device. Its forward must read nothing back to the host.
        inputs: [B, ...], an example. Every later batch has its shape and dtype.
        chips: S, chips per replay.
        precision: "float32", or "bfloat16" for products under autocast.
        programmed: True: a replay first programs all layers in few launches, then uses library products. This suits
            many rows per chip, and needs S times the weights' memory. False: layer by layer.
        after: None, or a function of the logits [S, B, ...] that is captured too; its result is then the output.

    Attributes:
        inputs [B, ...], key [S, 2]: the inputs of a replay; fill them in place to use `replay` directly.
        output: the output of a replay: the model's output [S * B, ...], or the result of `after`.

    Raises:
        TypeError, ValueError: a bad argument, or weights that are not finite.
        RuntimeError: no usable CUDA, or a forward that cannot be captured.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor,
        chips: int = 1,
        *,
        precision: str = "float32",
        programmed: bool = False,
        after: Callable[[Tensor], Any] | None = None,
    ) -> None:
        check_model(model)
        chips = integer("chips", chips, 1)
        one_of("precision", precision, PRECISIONS)
        boolean("programmed", programmed)
        if after is not None and not callable(after):
            fail("after", "must be a function of the logits, or None", repr(after), TypeError)
        if not isinstance(inputs, Tensor):
            fail("inputs", "must be a torch.Tensor", type(inputs).__name__, TypeError)
        if inputs.dim() == 0 or inputs.shape[0] == 0:
            fail("inputs", "must have the shape [B, ...] with B >= 1", list(inputs.shape))
        self.device = _cuda_device(model)
        self.model, self.chips, self._precision, self._after = model, chips, precision, after
        self._programmed = programmed
        self._layers = noisy_layers(model)
        with torch.cuda.device(self.device):
            self.inputs = torch.empty_like(inputs, device=self.device).copy_(inputs)  # keeps the memory format
            self.key = noise_key(0, range(chips), device=self.device)
            self._graph = torch.cuda.CUDAGraph()
            self.output = self._capture()

    def __call__(self, inputs: Tensor, key: Tensor) -> Any:
        """Runs the step on these images and chips.

        Args:
            inputs: [B, ...] of the captured shape and dtype, on any torch device.
            key: int64 [S, 2], on any torch device. Tensors on the CUDA device save a copy from the host.

        Returns:
            The output, a buffer that the next call overwrites.

        Raises:
            TypeError, ValueError: another shape or dtype.
            RuntimeError: a weight moved in memory after the capture.
        """
        _check_same("inputs", inputs, self.inputs)
        _check_same("key", key, self.key)
        self.inputs.copy_(inputs, non_blocking=True)
        self.key.copy_(key, non_blocking=True)
        return self.replay()

    def replay(self) -> Any:
        """Runs the step on the contents of `inputs` and `key`, on the current stream; returns the output.

        Raises:
            RuntimeError: a weight moved in memory, because the model was moved or a parameter replaced.
        """
        for name, then, now in zip(self._layers, self._captured, self._addresses()):
            if then != now:
                fail(
                    f"{name}.weight",
                    "must stay where it was at the capture, so capture the model again",
                    "another tensor",
                    RuntimeError,
                )
        with torch.cuda.device(self.device):
            self._graph.replay()
        return self.output

    # ---- the capture

    def _capture(self) -> Any:
        with eval_mode(self.model), torch.no_grad(), chips_of(self.model, key=self.key):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    self._step()
            torch.cuda.current_stream().wait_stream(side)
            current = torch.cuda.current_stream()
            try:
                with torch.cuda.graph(self._graph):
                    output = self._step()
            except RuntimeError as error:
                _recover(current)
                first = error.__context__ or error  # the end of a broken capture raises too, with less detail
                reason = next(iter(str(first).splitlines()), type(first).__name__)
                raise RuntimeError(
                    "model: must have a forward that a CUDA graph can capture (fixed shapes, nothing read back to "
                    f"the host); got {reason}"
                ) from error
            self._tables = [layer.noise_state()[0] for layer in self._layers.values()]  # the graph reads them
        self._captured = self._addresses()
        return output

    def _step(self) -> Any:
        # Autocast's cache would give the graph copies of weights that no longer exist at the replay.
        with autocast(self._precision, self.device, cache=False):
            if self._programmed:
                hold(self._layers.values())
            y = self.model(self.inputs)
        return y if self._after is None else self._after(y.unflatten(0, (self.chips, self.inputs.shape[0])))

    def _addresses(self) -> list[list[tuple[int, int]]]:
        return [[(id(w), w.data_ptr()) for w in layer.parameters()] for layer in self._layers.values()]


def _recover(current: torch.cuda.Stream) -> None:
    """Repairs torch's state after a failed capture.

    The current stream is still the capture's. Some versions also treat the generator as captured until the next capture
    succeeds.
    """
    torch.cuda.set_stream(current)
    # Suppressed, because a CUDA device in an error state raises again at its next use.
    with contextlib.suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph()):
        torch.zeros(1, device=current.device)
    torch.cuda.set_stream(current)


def _cuda_device(model: nn.Module) -> torch.device:
    """The one CUDA device of the model's noisy layers.

    Raises:
        RuntimeError: torch finds no CUDA, or the CUDA library does not run.
        ValueError: the layers are on another torch device, or on several.
    """
    found = sorted({str(layer.anchor.device) for layer in noisy_layers(model).values()})
    if not torch.cuda.is_available():
        fail(
            "model",
            "must be on a CUDA device, and torch finds none on this machine; call the model itself or "
            "nft_ext.monte_carlo",
            ", ".join(found),
            RuntimeError,
        )
    if build_info.cuda_failure is not None:
        fail("model", f"cannot run on CUDA, because {build_info.cuda_failure}", ", ".join(found), RuntimeError)
    if len(found) != 1 or not found[0].startswith("cuda"):
        fail("model", "must have all its noisy layers on one CUDA device; use model.cuda()", ", ".join(found))
    return torch.device(found[0])


def _check_same(argument: str, value: Any, buffer: Tensor) -> None:
    if not isinstance(value, Tensor) or value.dtype != buffer.dtype:
        fail(
            argument,
            f"must be a {buffer.dtype} tensor, as at the capture",
            str(getattr(value, "dtype", type(value).__name__)),
            TypeError,
        )
    if value.shape != buffer.shape:
        fail(argument, f"must have the shape {list(buffer.shape)}, as at the capture", list(value.shape))
