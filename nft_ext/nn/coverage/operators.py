"""How many multiply-accumulates an operator of torch takes, by the operand that may be a weight."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

# (operand, multiply-accumulates of the product with it, whether it stands where a weight stands)
Operand = tuple[Tensor, int, bool]


def _two(first: int) -> Callable[[tuple, Any], list[Operand]]:
    """Of a matrix product whose factors are the arguments `first` and `first + 1`."""

    def operands(args: tuple, out: Any) -> list[Operand]:
        a, b = args[first], args[first + 1]
        columns = 1 if b.dim() == 1 else b.shape[-1]
        macs = a.numel() * columns
        return [(a, macs, False), (b, macs, False)]

    return operands


def _linear(args: tuple, out: Any) -> list[Operand]:
    x, weight = args[0], args[1]
    macs = out.numel() // max(1, weight.shape[0]) * weight.numel()
    return [(x, macs, False), (weight, macs, True)]


def _convolution(args: tuple, out: Any) -> list[Operand]:
    x, weight, transposed = args[0], args[1], bool(args[6])
    # A transposed convolution multiplies once per position of its input, the others once per position of the output.
    positions = x.shape[0] * math.prod(x.shape[2:]) if transposed else out.shape[0] * math.prod(out.shape[2:])
    return [(x, positions * weight.numel(), False), (weight, positions * weight.numel(), True)]


def _noisy_conv2d(args: tuple, out: Any) -> list[Operand]:
    weight = args[1]
    macs = out.numel() // max(1, weight.shape[0]) * weight.numel()
    return [(args[0], macs, False), (weight, macs, True)]


def _bilinear(args: tuple, out: Any) -> list[Operand]:
    macs = args[0].shape[0] * args[1].numel()
    return [(args[0], macs, False), (args[1], macs, True), (args[2], macs, False)]


def _grouped(args: tuple, out: Any) -> list[Operand]:
    macs = args[0].shape[-2] * args[0].shape[-1] * args[1].shape[-1]
    return [(args[0], macs, False), (args[1], macs, True)]


def _recurrent(weights: Callable[[tuple], list[Tensor]]) -> Callable[[tuple, Any], list[Operand]]:
    """Of recurrent operators: every matrix is multiplied once per step and sequence."""

    def operands(args: tuple, out: Any) -> list[Operand]:
        rows = args[0].numel() // max(1, args[0].shape[-1])
        matrices = [w for w in weights(args) if w is not None and w.dim() >= 2]
        return [(args[0], 0, False), *((w, rows * w.numel(), True) for w in matrices)]

    return operands


PRODUCTS: dict[str, Callable[[tuple, Any], list[Operand]]] = {
    **dict.fromkeys(("aten::mm", "aten::bmm", "aten::mv", "aten::dot", "aten::vdot", "aten::_sparse_mm"), _two(0)),
    **dict.fromkeys(
        ("aten::addmm", "aten::addmv", "aten::baddbmm", "aten::addbmm", "aten::_addmm_activation"), _two(1)
    ),
    **dict.fromkeys(("aten::linear", "aten::mkldnn_linear"), _linear),
    **dict.fromkeys(("nft_ext::noisy_linear", "nft_ext::noisy_linear_fused"), _linear),
    **dict.fromkeys(("nft_ext::noisy_conv2d", "nft_ext::noisy_conv2d_fused"), _noisy_conv2d),
    **dict.fromkeys(("aten::convolution", "aten::_convolution"), _convolution),
    "aten::_trilinear": _bilinear,
    "aten::_grouped_mm": _grouped,
    "aten::mkldnn_rnn_layer": _recurrent(lambda args: list(args[1:3])),
    "aten::_cudnn_rnn": _recurrent(lambda args: list(args[1])),
    "aten::miopen_rnn": _recurrent(lambda args: list(args[1])),
}
VECTORS = {"aten::mv", "aten::addmv", "aten::dot", "aten::vdot"}  # a power iteration multiplies so, too
EMBEDDINGS = {"aten::embedding", "aten::_embedding_bag", "aten::_embedding_bag_forward_only"}
ROWS = {"aten::index", "aten::index_select", "aten::gather"}
JOINS = {"aten::cat", "aten::stack", "aten::where"}
