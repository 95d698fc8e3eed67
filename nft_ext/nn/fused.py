"""Noisy layers with an epilogue: made by nft_ext.fuse, for inference."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from nft_ext._common.checks import fail
from nft_ext.nn import programmed
from nft_ext.nn.base import NoisyLayer
from nft_ext.nn.conv import NoisyConv2d
from nft_ext.nn.linear import NoisyLinear
from nft_ext.ops import operators
from nft_ext.ops.convolution import output_size
from nft_ext.ops.functional import Crossbar, conv2d_operands, conv2d_product, for_kernels, linear_product
from nft_ext.ops.operands import Epilogue, apply_epilogue, check_tensor, in_autocast, is_dense_on_cpu


class FusedLayer(NoisyLayer):
    """y = relu((W_p x + b) * scale + shift + residual), with the name, stream, device and chips of the noisy layer.

    Attributes:
        scale, shift: buffers [out] or None. They stay float32 in `model.to(dtype)`.
        ends_in_relu: whether the epilogue ends with ReLU.

    Every forward reads all settings anew, so later changes of them have an effect.
    """

    scale: Tensor | None
    shift: Tensor | None
    bias: Tensor | None
    _operator: Any
    converters_served = False
    _sum: str | None = None  # where the model adds in place: into the "product" or the "residual"

    def set_epilogue(
        self, scale: Tensor | None, shift: Tensor | None, ends_in_relu: bool, into: str | None = None
    ) -> None:
        """Sets what the layer does after its product; into: where the addition writes, None if into new memory."""
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)
        self.ends_in_relu, self._sum = ends_in_relu, into
        self._known: dict[tuple, tuple] = {}

    def forward(self, x: Tensor, *residuals: Tensor) -> Tensor:
        """y from x and an optional residual.

        Raises:
            RuntimeError: training mode, or a tensor that requires a gradient.
            TypeError, ValueError: as the noisy layer. A residual that is None.
        """
        residual = residuals[0] if residuals else None
        if residuals and residual is None:
            fail("residual", "must be a tensor, because the model adds it", "None", TypeError)
        if self.training:
            fail(
                self.name or type(self).__name__,
                "must be in eval mode, because it was fused for inference. Train the original model, then fuse again",
                "training mode",
                RuntimeError,
            )
        compiling = torch.compiler.is_compiling()
        if isinstance(x, Tensor) and (weights := self.programmed(x)) is not None:
            return self.with_programmed(x, weights, residual)
        bar = for_kernels(self.crossbar(compiling))
        if compiling or not isinstance(x, Tensor):
            return self.checked(x, residual, bar)[0]
        x = in_autocast(x)
        # Checks run once per combination of settings, shapes, types and torch devices.
        stamp = (
            *self.settings(),
            *(type(x), x.shape, x.dtype, x.device, x.layout),
            *(bar.weight.shape, bar.weight.device, bar.key.shape[0]),
        )
        if residual is not None:
            stamp += (type(residual), *_facts(residual))
        try:
            static = self._known.get(stamp)
        except TypeError:  # a list among the settings, which may change in place
            return self.checked(x, residual, bar)[0]
        if static is not None:
            rows, own = self._buffers, self._parameters
            bias = own["bias"] if "bias" in own else self.bias  # noqa: SIM401  (self.bias is slow to find)
            call = operators.call_fused if torch.is_grad_enabled() else operators.without_autograd
            return call(
                self._operator,
                x,
                bar.weight,
                bias,
                *bar[1:],
                *static,
                rows["scale"],
                rows["shift"],
                residual,
                self.ends_in_relu,
            )
        y, static = self.checked(x, residual, bar)
        if static is not None:
            if len(self._known) >= 64:
                self._known.clear()
            self._known[stamp] = static
        return y

    def settings(self) -> tuple:
        """What the operator's static arguments depend on, besides shapes and types."""
        return (self.__dict__["ends_in_relu"],)

    def plain_operands(self) -> tuple | None:
        """(weight, table, key, stream, spec, bias, scale, shift) for the operator noisy_cascade.

        The key is None if a new chip must be drawn. The result is None if the layer itself must be called: it has hooks
        or programmed or parametrized weights, or its forward raises an error.
        """
        own, rows = self._parameters, self._buffers
        weight = own.get("weight")
        table, key, spec = self._table, self._key, self._spec
        if self._owner is not None:
            self.check_caller()
        if (
            weight is None
            or self.training
            or self.shares_codes
            or self._forward_hooks
            or self._forward_pre_hooks
            or self._programmed is not None
            or "forward" in self.__dict__
            or not is_dense_on_cpu(weight)
        ):
            return None
        bias = own["bias"] if "bias" in own else self.bias  # noqa: SIM401  (self.bias is slow to find)
        return weight, table, key, self.stream, spec, bias, rows["scale"], rows["shift"]

    def checked(self, x: Any, residual: Any, bar: Crossbar) -> tuple[Tensor, tuple | None]:
        """(y, the operator's static arguments, or None if it cannot take x and residual unchanged), with all checks."""
        raise NotImplementedError

    def with_programmed(self, x: Tensor, weights: Tensor, residual: Any) -> Tensor:
        """y by a library product with programmed weights [S, *weight.shape]."""
        raise NotImplementedError

    def after_library_product(self, y: Tensor, residual: Any) -> Tensor:
        """The epilogue of a library product, in one loop if possible."""
        fits = residual is None or _facts(residual) == _facts(y)
        e = Epilogue(self.scale, self.shift, residual if fits else None, self.ends_in_relu and fits)
        served = y.dtype in (torch.float32, torch.bfloat16) or (y.is_cuda and y.dtype == torch.float16)
        in_place = served and not torch.compiler.is_compiling()
        y = programmed.apply_epilogue(y, *e) if in_place else apply_epilogue(y, e)
        return y if fits else self.add_and_relu(y, residual)

    def add_and_relu(self, y: Tensor, residual: Any) -> Tensor:
        """Residual and ReLU by torch, for a residual of another shape or type than the product."""
        if residual is not None and self._sum is not None:
            y = y.add_(residual) if self._sum == "product" else residual.add_(y)
        elif residual is not None:
            y = y + residual
        return y.relu() if self.ends_in_relu else y

    def _apply(self, fn, recurse=True):
        """Moves scale and shift, but keeps them float32."""
        rows = {name: row for name in ("scale", "shift") if (row := self._buffers[name]) is not None}
        super()._apply(fn, recurse)
        for name, row in rows.items():
            moved = self._buffers[name]
            if moved is not None and moved.dtype != torch.float32:
                self._buffers[name] = row.to(moved.device)
        self._known = {}
        return self

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "_known": {}}

    def extra_repr(self) -> str:
        given = {"scale": self.scale is not None, "shift": self.shift is not None, "relu": self.ends_in_relu}
        return f"{super().extra_repr()}, then {', '.join(name for name in given if given[name]) or 'nothing'}"


def _facts(t: Any) -> tuple:
    return (t.shape, t.dtype, t.device, t.layout) if isinstance(t, Tensor) else (None,)


def _fits(residual: Any, shape: list[int], x: Tensor) -> bool:
    return residual is None or _facts(residual) == (torch.Size(shape), x.dtype, x.device, torch.strided)


class FusedConv2d(FusedLayer, NoisyConv2d):
    """A NoisyConv2d with BatchNorm2d in eval mode, a residual and ReLU; all three are optional."""

    _operator = operators.ops.noisy_conv2d_fused.default

    def settings(self) -> tuple:
        own = self.__dict__
        geometry = own["stride"], own["padding"], own["dilation"], own["groups"], own["padding_mode"]
        return (own["ends_in_relu"], *geometry)

    def checked(self, x: Any, residual: Any, bar: Crossbar) -> tuple[Tensor, tuple | None]:
        check_tensor("x", x)
        single, shared = x.dim() == 3, bar.key.shape[0] == 1
        if x.dim() != 4 and not (single and shared and self.scale is None):
            fail("x", f"must have the shape [B, {self.in_channels}, H, W]", list(x.shape))
        given = x
        x, padding = self.padded(x.unsqueeze(0) if single else x)
        x, geometry, shape = conv2d_operands(
            x, self.bias, bar.weight, bar.key.shape[0], self.stride, padding, self.dilation, self.groups, shared
        )
        if residual is None or (not single and _fits(residual, shape, x)):
            e = Epilogue(self.scale, self.shift, residual, self.ends_in_relu)
            y = conv2d_product(x, self.bias, bar, *geometry, shared, e)
            return y.squeeze(0) if single else y, (
                *geometry,
                shared,
            ) if x is given and x.dtype != torch.float64 else None
        y = conv2d_product(x, self.bias, bar, *geometry, shared, Epilogue(self.scale, self.shift))
        return self.add_and_relu(y.squeeze(0) if single else y, residual), None

    def row_scale(self, dtype: torch.dtype) -> Tensor | None:
        """BatchNorm's scale, if cuDNN can compute the epilogue: in 16 bits, with ReLU.

        W_p * scale is then rounded instead of W_p, and results are not rounded before the epilogue.
        """
        served = (
            self.weight.is_cuda
            and dtype in (torch.bfloat16, torch.float16)
            and torch.backends.cudnn.enabled
            and torch.backends.cudnn.is_available()
            and operators.can_be_channels_last(self.weight, self._spec)
        )
        plain = self.ends_in_relu and self.padding_mode == "zeros" and not isinstance(self.padding, str)
        return self.scale if served and plain else None

    def scaled_shift(self, dtype: torch.dtype) -> Tensor:
        """b * scale + shift [out] in `dtype`. Only with a scale."""
        assert self.scale is not None
        shift = torch.zeros_like(self.scale) if self.shift is None else self.shift
        return (shift if self.bias is None else torch.addcmul(shift, self.bias.float(), self.scale)).to(dtype)

    def with_scaled(self, x: Tensor, weights: Tensor, residual: Any) -> Tensor:
        """y by cuDNN's convolution with an epilogue, from weights times scale."""
        if x.dim() != 4:
            fail("x", f"must have the shape [B, {self.in_channels}, H, W]", list(x.shape))
        x = in_autocast(x)
        weights, shift = weights.to(x.dtype), self.scaled_shift(x.dtype)
        padding = cast("tuple[int, int]", self.padding)  # row_scale has excluded "same" and "valid"
        geometry = (self.stride, padding, self.dilation, self.groups)
        size = output_size(x.shape[2:], self.kernel_size, self.stride, padding, self.dilation)
        if torch.compiler.is_compiling() or not _fits(residual, [x.shape[0], self.out_channels, *size], x):
            return self.add_and_relu(programmed.conv2d(x, weights, shift, *geometry), residual)
        chips = programmed.chips_of(x, weights)
        residuals = [None] * chips if residual is None else residual.chunk(chips)
        parts = [
            torch.cudnn_convolution_relu(part, w, shift, *geometry)
            if z is None
            else torch.cudnn_convolution_add_relu(part, w, z, 1.0, shift, *geometry)
            for part, w, z in zip(x.chunk(chips), weights, residuals)
        ]
        return parts[0] if chips == 1 else torch.cat(parts)

    def with_programmed(self, x: Tensor, weights: Tensor, residual: Any) -> Tensor:
        if self.scaled:
            return self.with_scaled(x, weights, residual)
        if x.dim() != 4 and self.scale is not None:
            fail("x", f"must have the shape [B, {self.in_channels}, H, W]", list(x.shape))
        y = NoisyConv2d.forward(self, x)
        return self.add_and_relu(y, residual) if y.dim() == 3 else self.after_library_product(y, residual)


class FusedLinear(FusedLayer, NoisyLinear):
    """A NoisyLinear with BatchNorm1d in eval mode, a residual and ReLU; all three are optional."""

    _operator = operators.ops.noisy_linear_fused.default

    def checked(self, x: Any, residual: Any, bar: Crossbar) -> tuple[Tensor, tuple | None]:
        check_tensor("x", x)
        shared = bar.key.shape[0] == 1
        if self.scale is not None and x.dim() != 2:  # BatchNorm1d's channels are dim 1, not the product's outputs
            y = linear_product(x, self.bias, bar, shared, Epilogue())
            return self.after_3d_product(x, y, residual), None
        x = in_autocast(x)
        if _fits(residual, [*x.shape[:-1], self.out_features], x):
            y = linear_product(x, self.bias, bar, shared, Epilogue(self.scale, self.shift, residual, self.ends_in_relu))
            return y, (shared,) if x.dim() == 2 and x.dtype != torch.float64 else None
        y = linear_product(x, self.bias, bar, shared, Epilogue(self.scale, self.shift))
        return self.add_and_relu(y, residual), None

    def with_programmed(self, x: Tensor, weights: Tensor, residual: Any) -> Tensor:
        y = programmed.linear(x, weights, self.bias)
        return self.after_library_product(y, residual) if y.dim() == 2 else self.after_3d_product(x, y, residual)

    def after_3d_product(self, x: Tensor, y: Tensor, residual: Any) -> Tensor:
        """The epilogue of a product y [B, C, out] whose BatchNorm1d, if any, has C channels."""
        if self.scale is not None and (y.dim() != 3 or y.shape[1] != len(self.scale)):
            shapes = f"[B, {self.in_features}], or [B, {len(self.scale)}, {self.in_features}]"
            fail("x", f"must have the shape {shapes} for the BatchNorm1d", list(x.shape))
        return self.add_and_relu(apply_epilogue(y, Epilogue(self.scale, self.shift)), residual)
