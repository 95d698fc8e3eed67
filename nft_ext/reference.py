"""Plain PyTorch definitions of every operator, short and slow. The compiled kernels must equal them.

The noise is float32 arithmetic with every operation rounded separately, so it equals the kernels bit for bit. Products
run in any dtype, including float64. The package itself never calls this module.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

ONE_STEP = (0, 0, 0, 1)  # a scaling
SLICE_IDLE, SLICE_FAULT, SLICE_IDLE_FAULT, SLICE_WEIGHT = 32, 64, 96, 255
_LOG = [
    -0.17400802671909332,
    0.2853386402130127,
    -0.2982901632785797,
    0.33155304193496704,
    -0.399262011051178,
    0.5000267028808594,
    -0.6666781902313232,
    1.0,
]
_SIN = [-0.004685971885919571, 0.07971252501010895, -0.645966649055481, 1.5707963705062866]
_COS = [-0.020414529368281364, 0.25360238552093506, -1.2336976528167725, 1.0]


def _f32(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32)


def _sqrt(x: Tensor) -> Tensor:
    """Correctly rounded float32 square root. Torch's own may be off by one ULP (vector library)."""
    return x.double().sqrt().float()


def philox(counter: Tensor, key: tuple[int, int]) -> Tensor:
    """Philox4x32-10 of counters int64 [n, 4], words in 0 .. 2^32 - 1. Returns words of the same shape."""
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key
    mask = 0xFFFFFFFF

    def product(a: int, c: Tensor) -> tuple[Tensor, Tensor]:  # 32 x 32 bits in halves: int64 would overflow
        low, high = (c & 0xFFFF) * a, (c >> 16) * a
        full_low = low + ((high & 0xFFFF) << 16)
        return (high >> 16) + (full_low >> 32), full_low & mask

    for _ in range(10):
        h0, l0 = product(0xD2511F53, c0)
        h1, l1 = product(0xCD9E8D57, c2)
        c0, c1, c2, c3 = h1 ^ c1 ^ k0, l1, h0 ^ c3 ^ k1, l0
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    return torch.stack([c0, c1, c2, c3], -1)


def words(key_row: Tensor, stream: int, slice_: int, n: int) -> Tensor:
    """Random words int64 [n] of elements 0 .. n-1 (counter layout: csrc/core/philox.h)."""
    seed, draw = (int(v) % 2**64 for v in key_row)
    block = torch.arange((n + 3) // 4, dtype=torch.int64)
    domain = draw >> 32 & 0xFF
    counter = torch.stack(
        [
            block & 0xFFFFFFFF,
            (block >> 32 & 0xFFFF) | slice_ << 16 | domain << 24,
            torch.full_like(block, stream),
            torch.full_like(block, draw & 0xFFFFFFFF),
        ],
        -1,
    )
    return philox(counter, (seed & 0xFFFFFFFF, seed >> 32)).reshape(-1)[:n]


def _polynomial(x: Tensor, coefficients: list[float]) -> Tensor:
    p = torch.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        p = p * x + c
    return p


def minus_two_log(u: Tensor) -> Tensor:
    """-2 ln(u) in float32, for u in [2^-32, 1]."""
    shifted = u.view(torch.int32) - 0x3F3504F3
    e = (shifted >> 23).float()
    f = ((shifted & 0x7FFFFF) + 0x3F3504F3).view(torch.float32) - 1.0
    p = _polynomial(f, _LOG) * (f * f) - (f + f)
    return p - e * _f32(1.3862943649291992)


def uniform_open(x: Tensor) -> Tensor:
    """Uniform float32 in [2^-32, 1] from words."""
    return ((x >> 1).float() + 0.5) * 2.0**-31


def normals(key_row: Tensor, stream: int, slice_: int, n: int) -> Tensor:
    """Standard normals float32 [n] of elements 0 .. n-1 (Box-Muller on neighbouring words)."""
    x = words(key_row, stream, slice_, (n + 3) // 4 * 4).reshape(-1, 2)
    radius = _sqrt(minus_two_log(uniform_open(x[:, 0])))
    t = (x[:, 1] & 0x7FFFFF).float() * 2.0**-23 - 0.5
    t2 = t * t
    sine, cosine = _polynomial(t2, _SIN) * t, _polynomial(t2, _COS)
    mirrored, opposite = x[:, 1] >> 30 & 1 == 1, x[:, 1] >> 31 == 1
    c, s = torch.where(mirrored, sine, cosine), torch.where(mirrored, cosine, sine)
    radius = torch.where(opposite, -radius, radius)
    return torch.stack([radius * c, radius * s], -1).reshape(-1)[:n]


def truncated(key_row: Tensor, stream: int, slice_: int, n: int, half_mass: Tensor) -> Tensor:
    """Normals truncated to |z| <= c with half_mass = Phi(c) - 1/2, by Wichura's inverse (AS 241, PPND7)."""
    x = words(key_row, stream, slice_, n)
    p = 0.5 - uniform_open(x) * half_mass
    q = 0.5 - p
    r = _f32(0.180625) - q * q
    inner = q * _polynomial(r, [5.9109374720e1, 1.5929113202e2, 5.0434271938e1, 3.3871327179])
    inner = inner / _polynomial(r, [6.7187563600e1, 7.8757757664e1, 1.7895169469e1, 1.0])
    t = _sqrt(0.5 * minus_two_log(p.clamp_min(2.0**-32))) - _f32(1.6)
    outer = _polynomial(t, [1.7023821103e-1, 1.3067284816, 2.7568153900, 1.4234372777])
    outer = outer / _polynomial(t, [1.2021132975e-1, 7.3700164250e-1, 1.0])
    z = torch.where(q <= _f32(0.425), inner, outer)
    return torch.where(x % 2 == 1, -z, z)


def step_numbers(shape: torch.Size, scaling: Sequence[int]) -> Tensor:
    """The number of the step of every weight, int64 of `shape`. Numbers count [E, O, T] row-major.

    `scaling`: sharing, tile_rows, output_dim, groups, as in csrc/operators/schemas.cpp.
    """
    sharing, tile_rows, output_dim, groups = scaling
    if sharing == 0:
        return torch.zeros(shape, dtype=torch.int64)
    groups = groups or shape[0]
    outputs = shape[output_dim]
    before, after = math.prod(shape[:output_dim]), math.prod(shape[output_dim + 1 :])
    group, k1, output, k2 = torch.meshgrid(
        *(torch.arange(n) for n in (groups, before // groups, outputs, after)), indexing="ij"
    )
    if sharing == 1:
        return group.reshape(shape)
    inputs = before // groups * after
    rows = tile_rows if sharing == 3 else max(1, inputs)
    tiles = -(-inputs // rows)
    return ((group * outputs + output) * tiles + (k1 * after + k2) // rows).reshape(shape)


def quantize(weight: Tensor, weight_bits: int, scaling: Sequence[int] = ONE_STEP) -> tuple[Tensor, Tensor, Tensor]:
    """(code float32 [*], sign [*], the step of every weight [*]), Eq. 4 of arXiv 2305.14561."""
    top = 2.0**weight_bits - 1
    number = step_numbers(weight.shape, scaling)
    count = int(number.max()) + 1 if weight.numel() else 0
    largest = weight.new_zeros(count).scatter_reduce_(0, number.reshape(-1), weight.abs().reshape(-1), "amax")
    step = (largest / top)[number]
    code = torch.where(step == 0, 0.0, (weight.abs() / step).clamp_max(top).round())
    return code, torch.where((weight < 0) & (step != 0), -1.0, 1.0), step


def program(weight: Tensor, table: Tensor, key: Tensor, stream: int, device: list[int]) -> Tensor:
    """Programmed weights float32 [S, *weight.shape], Eq. 5. Arguments as in csrc/operators/schemas.cpp."""
    step = quantize(weight.detach().float().contiguous(), device[0], device[4:])[2]
    in_steps = program_in_steps(weight, table, key, stream, device)  # a sign changes no rounding
    return torch.where(step == 0, 0.0, step * in_steps)


def program_in_steps(weight: Tensor, table: Tensor, key: Tensor, stream: int, device: list[int]) -> Tensor:
    """Programmed weights in units of their steps, sign * (mean[q] + std[q] z), float32 [S, *weight.shape]."""
    bits, device_bits, path, mapping, *scaling = device
    code, sign, _ = quantize(weight.detach().float().contiguous(), bits, scaling)
    q = code.reshape(-1).long()
    chips = []
    for row in key:
        if path == 0:
            in_steps = code.reshape(-1)
        elif path == 1:
            mean, std = table.reshape(2, -1)
            in_steps = mean[q] + std[q] * normals(row, stream, SLICE_WEIGHT, len(q))
        else:
            in_steps = _devices(q, table, row, stream, bits, device_bits, mapping)
        chips.append(sign * in_steps.reshape(weight.shape))
    return torch.stack(chips)


def _devices(q: Tensor, table: Tensor, row: Tensor, stream: int, bits: int, device_bits: int, mapping: int) -> Tensor:
    levels = 1 << device_bits
    mean, sd, limits = table[:levels], table[levels : 2 * levels], table[2 * levels :]
    *_, stuck_any, half_mass = limits.unbind()
    total = torch.zeros(len(q))
    for idle in range(1 + mapping):
        for j in range(bits // device_bits):
            level = torch.zeros_like(q) if idle else (q >> (j * device_bits)) & (levels - 1)
            slice_ = j + SLICE_IDLE * idle
            if half_mass > 0:
                z = truncated(row, stream, slice_, len(q), half_mass)
            else:
                z = normals(row, stream, slice_, len(q))
            g = device_conductance(mean[level], sd[level], z, limits)
            if stuck_any > 0:
                u = (words(row, stream, slice_ + SLICE_FAULT, len(q)) >> 8).float() * 2.0**-24
                g = with_fault(g, u, float(levels - 1), limits)
            part = g * float(1 << (j * device_bits))
            total = total - part if idle else total + part
    return total


def device_conductance(mean: Tensor, sd: Tensor, z: Tensor, limits: Tensor) -> Tensor:
    """Conductance of one device in level units, before faults; [n] each, `limits` as in csrc/core/conductance.h."""
    z_max, g_min, g_max, *_ = limits.unbind()
    return (mean + sd * torch.minimum(z, z_max)).clamp(g_min, g_max)


def with_fault(g: Tensor, u: Tensor, top: float, limits: Tensor) -> Tensor:
    """`g` [n], or level 0 or `top` where the uniform `u` [n] says that the device is stuck."""
    *_, stuck_off, stuck_any, _ = limits.unbind()
    return torch.where(u < stuck_any, torch.where(u < stuck_off, 0.0, top), g)


def straight_through(weight: Tensor, programmed: Tensor, dtype: torch.dtype) -> Tensor:
    """`programmed` in the forward, rounded to `dtype`; the identity to `weight` in the backward."""
    chip = programmed.to(torch.float32).to(dtype) if dtype != torch.float64 else programmed.double()
    return (
        weight.to(dtype) + (chip - weight.to(dtype)).detach()
        if dtype == torch.float64
        else _Through.apply(weight, chip)
    )


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight, chip):
        ctx.dtype = weight.dtype
        return chip.clone()

    @staticmethod
    def backward(ctx, *grad_outputs):
        return grad_outputs[0].to(ctx.dtype), None


def epilogue(y: Tensor, scale, shift, residual, relu: bool) -> Tensor:
    """relu(y * scale + shift + residual) in y's dtype, for a product y with its bias. None omits a term."""
    row = (1, -1, *[1] * (y.dim() - 2))
    y = y if scale is None else y * scale.to(y.dtype).view(row)
    y = y if shift is None else y + shift.to(y.dtype).view(row)
    y = y if residual is None else y + residual.to(y.dtype)
    return y.relu() if relu else y


def _per_chip(x: Tensor, chips: int, shared: bool) -> list[Tensor]:
    return [x] * chips if shared else list(x.chunk(chips))


def noisy_linear(x, weight, bias, table, key, stream, device, shared) -> Tensor:
    """The operator's definition. x may be float64."""
    w = program(weight, table, key, stream, device)
    bias = None if bias is None else bias.to(x.dtype)
    return torch.cat(
        [
            F.linear(rows, straight_through(weight, chip, x.dtype), bias)
            for rows, chip in zip(_per_chip(x, len(key), shared), w)
        ]
    )


def noisy_conv2d(x, weight, bias, table, key, stream, device, stride, padding, dilation, groups, shared) -> Tensor:
    """The operator's definition. x may be float64."""
    w = program(weight, table, key, stream, device)
    bias = None if bias is None else bias.to(x.dtype)
    return torch.cat(
        [
            F.conv2d(rows, straight_through(weight, chip, x.dtype), bias, stride, padding, dilation, groups)
            for rows, chip in zip(_per_chip(x, len(key), shared), w)
        ]
    )


def noisy_linear_fused(x, weight, bias, table, key, stream, device, shared, scale, shift, residual, relu) -> Tensor:
    """The operator's definition, rounded after every operation. x may be float64."""
    return epilogue(noisy_linear(x, weight, bias, table, key, stream, device, shared), scale, shift, residual, relu)


def noisy_conv2d_fused(
    x, weight, bias, table, key, stream, device, stride, padding, dilation, groups, shared, scale, shift, residual, relu
) -> Tensor:
    """The operator's definition, rounded after every operation. x may be float64."""
    y = noisy_conv2d(x, weight, bias, table, key, stream, device, stride, padding, dilation, groups, shared)
    return epilogue(y, scale, shift, residual, relu)


def converter_levels(low: Tensor, bits: int) -> Tensor:
    """L of a converter: 2^(bits-1) - 1 for a signed range (low < 0), else 2^bits - 1."""
    return torch.where(low < 0, 2.0 ** (bits - 1) - 1, 2.0**bits - 1)


def converter(x: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """high * clamp(rint(x / high * L), -L, L) / L, rounded after every operation; low = 0 clamps at 0.

    The range broadcasts against x. high = 0 gives 0. Gradient: 1 inside the range, 0 outside.
    """
    return _Converter.apply(x, low, high, bits)  # pyright: ignore[reportReturnType]


class _Converter(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, low, high, bits):
        ctx.save_for_backward(x, low, high)
        top = converter_levels(low, bits).to(x.dtype)
        level = torch.round(x / high * top)
        level = torch.minimum(torch.maximum(level, torch.where(low < 0, -top, 0.0)), top)
        return torch.where(high == 0, 0.0, high * level / top)

    @staticmethod
    def backward(ctx, *grad_outputs):
        x, low, high = ctx.saved_tensors
        return grad_outputs[0] * ((x >= low) & (x <= high)), None, None, None


def converted_input(x: Tensor, bits: int, limits: Tensor | None, example_dims: int) -> Tensor:
    """x behind a DAC of `bits` bits, with a static range [2], or (None) the largest magnitude of each example.

    An example is the last `example_dims` dimensions: 1 for an input vector, 3 for an image.
    """
    if limits is not None:
        return converter(x, limits[0], limits[1], bits)
    high = x.detach().abs().flatten(-example_dims).amax(-1).view(*x.shape[:-example_dims], *[1] * example_dims)
    return converter(x, -high, high, bits)


class _InSteps(torch.autograd.Function):
    """`in_steps` in the forward; in the backward the gradient of the programmed weight, step * in_steps."""

    @staticmethod
    def forward(ctx, weight, in_steps, step):
        ctx.save_for_backward(step)
        return in_steps.clone()

    @staticmethod
    def backward(ctx, *grad_outputs):
        (step,) = ctx.saved_tensors
        return torch.where(step == 0, 0.0, grad_outputs[0] / step), None, None


def converted_linear(x, weight, bias, table, key, stream, device, rows, limit, bits) -> Tensor:
    """y[o] = sum_t s[o, t] * ADC(u[o, t]) + bias for x [S * B, in] chip-major, tile by tile; rows: inputs per tile."""
    in_steps, step = program_in_steps(weight, table, key, stream, device), _step_of(weight, device)
    results = []
    for part, chip in zip(x.chunk(len(key)), in_steps):
        y = torch.zeros(len(part), len(weight), dtype=x.dtype)
        for first in range(0, weight.shape[1], rows or weight.shape[1]):
            tile = slice(first, first + (rows or weight.shape[1]))
            sums = part[:, tile] @ _InSteps.apply(weight, chip.to(x.dtype), step)[:, tile].T
            y = y + step[:, first] * converter(sums, -limit, limit, bits)
        results.append(y)
    y = torch.cat(results)
    return y if bias is None else y + bias.to(y.dtype)


def converted_conv2d(
    x, weight, bias, table, key, stream, device, stride, padding, dilation, groups, rows, limit, bits
) -> Tensor:
    """As `converted_linear`, for a convolution of x [S * B, C, H, W] that is unfolded, group by group."""
    in_steps, step = program_in_steps(weight, table, key, stream, device), _step_of(weight, device)
    outputs, inputs = len(weight) // groups, weight[0].numel()
    kernel = weight.shape[2:]
    size = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in zip(x.shape[2:], padding, dilation, kernel, stride)
    ]
    results = []
    for part, chip in zip(x.chunk(len(key)), in_steps):
        columns = F.unfold(part, kernel, dilation, padding, stride).unflatten(1, (groups, inputs))
        found = []
        for group in range(groups):
            own = slice(group * outputs, (group + 1) * outputs)
            w = _InSteps.apply(weight, chip.to(x.dtype), step)[own].flatten(1)
            y = torch.zeros(len(part), outputs, columns.shape[-1], dtype=x.dtype)
            for first in range(0, inputs, rows or inputs):
                tile = slice(first, first + (rows or inputs))
                sums = w[:, tile] @ columns[:, group, tile]
                y = y + step[own].flatten(1)[:, first, None] * converter(sums, -limit, limit, bits)
            found.append(y)
        results.append(torch.cat(found, 1).unflatten(2, size))
    y = torch.cat(results)
    return y if bias is None else y + bias.to(y.dtype).view(-1, 1, 1)


def _step_of(weight: Tensor, device: list[int]) -> Tensor:
    """The step of every weight, in the weight's shape."""
    return quantize(weight.detach().float().contiguous(), device[0], device[4:])[2].expand(weight.shape)
