"""Random calls of the public functions on tensors, beside their definitions. A seed names a case.

As a program: python python_tests/support/fuzz.py --count 10000. It stops at the first case that differs and prints it.
"""

import argparse
import random
import time
from collections import Counter

import torch
from torch import nn
from torch.nn import functional as F

import nft_ext as nft
from nft_ext import reference

BITS = [
    (1, 1),
    (2, 1),
    (2, 2),
    (4, 2),
    (5, 5),
    (6, 3),
    (8, 2),
    (8, 2),
    (8, 4),
    (8, 8),
    (12, 3),
    (15, 5),
    (16, 4),
    (16, 16),
]
ops = torch.ops.nft_ext


class Case:
    """One case: its random choices, what it calls, and its description for a failure."""

    def __init__(self, seed):
        self.pick = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.facts = {"seed": seed}

    def choose(self, name, *values):
        found = self.pick.choice(values)
        self.facts[name] = found
        return found

    # ---- operands

    def normal(self, *shape):
        return torch.randn(shape, generator=self.generator)

    def laid_out(self, name, *shape):
        """Normal numbers of `shape` in one of several memory layouts."""
        layout = self.choose(f"{name}'s layout", "dense", "dense", "transposed", "sliced", "expanded", "channels last")
        if layout == "transposed" and len(shape) > 1:
            return self.normal(*shape[:-2], shape[-1], shape[-2]).transpose(-1, -2)
        if layout == "sliced":
            return self.normal(*[2 * size for size in shape])[tuple(slice(0, 2 * size, 2) for size in shape)]
        if layout == "expanded" and shape:
            return self.normal(1, *shape[1:]).expand(shape)
        if layout == "channels last" and len(shape) == 4:
            return self.normal(*shape).contiguous(memory_format=torch.channels_last)
        return self.normal(*shape)

    def weight(self, *shape):
        kind = self.choose(
            "weight", "normal", "normal", "normal", "zeros among", "outlier", "zero", "tiny", "bfloat16", "float16"
        )
        weight = self.laid_out("weight", *shape) * self.choose("scale of the weight", 1e-3, 0.1, 1.0, 100.0)
        if kind == "zeros among":
            return torch.where(self.normal(*shape) > 0, weight, self.pick.choice([0.0, -0.0]))
        if kind == "outlier" and weight.numel():
            weight = weight.clone()
            weight[tuple(self.pick.randrange(size) for size in shape)] = self.pick.choice([-1e4, 1e4])
        return {
            "zero": weight * -0.0,
            "tiny": weight * 1e-41,
            "bfloat16": weight.bfloat16(),
            "float16": weight.half(),
        }.get(kind, weight)

    def device(self):
        """A device model, and whether its noise is on."""
        for _ in range(20):
            weight_bits, device_bits = self.choose("bits", *BITS)
            options = dict(sigma=self.pick.choice([0.0, 0.01, 0.1, 0.5]))
            for name, values in (
                ("sampling", ["per_device"]),
                ("mapping", ["differential"]),
                ("relative_to", ["spacing", "own"]),
                ("clip", [(0.0, 1.0), (-0.1, 1.1)]),
                ("truncate", [1.0, 3.0]),
                ("censor", [0.5, 2.0]),
                ("stuck", [(0.1, 0.0), (0.05, 0.2)]),
            ):
                if self.pick.random() < 0.15:
                    options[name] = self.pick.choice(values)
            if self.pick.random() < 0.2:
                levels = range(1 << device_bits)
                options |= dict(
                    level_mean=tuple(level + self.pick.uniform(-0.3, 0.3) for level in levels),
                    level_std=tuple(self.pick.uniform(0.0, 0.4) for _ in levels),
                    sigma=1.0,
                )
                options.pop("relative_to", None)
            try:
                nvm = nft.NVMDevice(weight_bits, device_bits, **options)
            except ValueError:  # two options that exclude each other
                continue
            self.facts["device"] = str(nvm)
            return nvm, self.choose("enabled", True, True, True, False)
        return nft.NVMDevice(), True

    def key(self):
        seed = self.choose("chip seed", 0, 1, 2**63, 2**64 - 1, self.pick.getrandbits(64))
        draws = [self.pick.getrandbits(32) for _ in range(self.choose("chips", 1, 1, 2, 3))]
        return nft.noise_key(seed, draws, domain=self.choose("domain", "evaluation", "training", "selection"))

    def stream(self):
        return self.choose("stream", 0, 1, 2**32 - 1, self.pick.getrandbits(32))

    # ---- comparison

    def fail(self, what):
        raise AssertionError(f"{what}: " + ", ".join(f"{name}={value}" for name, value in self.facts.items()))

    def equal(self, what, found, expected):
        """The same bits; NaN nowhere."""
        as_bits = {torch.float32: torch.int32, torch.bfloat16: torch.int16}
        if found.shape != expected.shape or found.dtype != expected.dtype:
            self.fail(f"{what} is {list(found.shape)} {found.dtype}, not {list(expected.shape)} {expected.dtype}")
        same = found.contiguous().view(as_bits[found.dtype]) == expected.contiguous().view(as_bits[found.dtype])
        if not (same | (found == expected)).all():
            self.fail(f"{what} differs at {int((~same).sum())} of {same.numel()} places")

    def close(self, what, found, exact, bound):
        if found.shape != exact.shape:
            self.fail(f"{what} is {list(found.shape)}, not {list(exact.shape)}")
        over = (found.double() - exact).abs() > bound + 1e-36  # bfloat16 instructions read subnormal numbers as zero
        if over.any() or found.isnan().any():
            self.fail(f"{what} differs by more than its rounding at {int(over.sum())} of {over.numel()} places")


def chips_of(case, weight, nvm, key, stream, enabled):
    """The definition's programmed weights, float32 [S, *weight.shape]."""
    table = torch.from_numpy(nvm.operator_table())
    return reference.program(weight.float(), table, key, stream, nvm.operator_spec(enabled))


def program(case):
    shape = [case.pick.choice([1, 2, 3, 7, 16, 33, 65]) for _ in range(case.choose("dimensions", 0, 1, 2, 3, 4))]
    if case.pick.random() < 0.1:
        shape = [case.choose("size", 0, 255, 256, 257, 16385, 33000)]
    weight, (nvm, enabled), key, stream = case.weight(*shape), case.device(), case.key(), case.stream()
    dtype = case.choose("dtype", torch.float32, torch.bfloat16)
    expected = chips_of(case, weight, nvm, key, stream, enabled).to(dtype)
    for _ in range(case.choose("calls", 1, 4)):  # the fourth call expects max|W|
        found = nft.program_weights(weight, nvm, stream=stream, key=key, dtype=dtype, enabled=enabled)
        case.equal("W_p", found, expected)
    weight = weight.float().contiguous()
    table, spec = torch.from_numpy(nvm.operator_table()), nvm.operator_spec(enabled)
    step = ops.weight_step(weight, nvm.weight_bits)
    codes = ops.quantize(weight, step, nvm.weight_bits)
    case.equal("W_p of codes", ops.program(weight, codes, step, table, key, stream, spec, dtype), expected)
    if weight.dim():
        many = ops.program_many([weight] * 2, [None, None], [], [table] * 2, key, [stream] * 2, spec * 2, [], dtype)
        case.equal("W_p of several layers", many[1], expected)


def linear(case):
    out, fan_in = case.choose("out", 1, 3, 17, 48, 130), case.choose("in", 1, 5, 64, 257)
    lead = case.choose("rows", (), (0,), (1,), (5,), (16,), (70,), (2, 3))
    options = {}

    def plain(x, w, b):
        return F.linear(x, w, b)

    return product(case, nft.noisy_linear, plain, (out, fan_in), lead, (fan_in,), options)


def conv(case):
    groups, per_group = case.choose("groups", 1, 1, 1, 2, 4), case.choose("channels per group", 1, 3, 8)
    out = groups * case.choose("outputs per group", 1, 5, 16)
    kernel = case.choose("kernel", (1, 1), (3, 3), (3, 3), (2, 4), (5, 1))
    side = [k + case.pick.randrange(9) for k in kernel]
    dilation = case.choose("dilation", (1, 1), (1, 1), (2, 1), (3, 3))
    padding = case.choose("padding", (0, 0), (1, 1), (2, 0), (4, 5), "same", "valid")
    stride = (1, 1) if padding == "same" else case.choose("stride", (1, 1), (2, 2), (1, 3))
    side = [max(s, d * (k - 1) + 1) for s, d, k in zip(side, dilation, kernel)]
    options = dict(stride=stride, padding=padding, dilation=dilation, groups=groups)
    case.facts["image"] = side

    def plain(x, w, b):
        return F.conv2d(x, w, b, **options)

    channels, lead = groups * per_group, (case.choose("images", 0, 1, 2, 16),)
    return product(case, nft.noisy_conv2d, plain, (out, per_group, *kernel), lead, (channels, *side), options)


def product(case, function, plain, weight_shape, lead, rest, options):
    """A noisy product, forward and perhaps backward, beside float64 products with the definition's weights."""
    weight, (nvm, enabled), key, stream = case.weight(*weight_shape), case.device(), case.key(), case.stream()
    chips = len(key)
    if not lead and chips > 1:
        lead = (1,)
    shared = case.choose("shared", True, True, False) or not lead
    if not shared:
        lead = (lead[0] * chips, *lead[1:])
    dtype = case.choose("dtype", torch.float32, torch.float32, torch.bfloat16)
    x = case.laid_out("x", *lead, *rest).to(dtype)
    bias = case.choose("bias", None, torch.float32, torch.bfloat16)
    bias = None if bias is None else case.normal(weight_shape[0]).to(bias)
    fused, backward = case.choose("mode", (False, False), (False, True), (True, False))
    w_p = chips_of(case, weight, nvm, key, stream, enabled).to(dtype).double()

    def exact(x, w_p, bias):
        parts = [x] * chips if shared else x.chunk(chips) if len(x) else [x] * chips
        return torch.cat([plain(part, w, bias).reshape(-1, *tail) for part, w in zip(parts, w_p)])

    b = None if bias is None else bias.to(dtype).double()
    tail = plain(torch.zeros(1, *rest), torch.zeros(weight_shape), None).shape[1:]
    y = exact(x.double(), w_p, b)
    size = exact(x.double().abs(), w_p.abs(), b if b is None else b.abs())
    # A float32 sum of n products errs by at most n units of 2^-24 of the sum of magnitudes. bfloat16 rounds it once,
    # and torch's products may round partial sums.
    unit = (w_p[0][0].numel() + 8) * 2.0**-24 if dtype == torch.float32 else 2.0**-6
    arguments = dict(nvm=nvm, key=key, stream=stream, shared=shared, enabled=enabled, **options)
    if fused:
        row = [1, -1, *[1] * (y.dim() - 2)]
        scale, shift = (case.normal(weight_shape[0]) if case.pick.random() < 0.7 else None for _ in range(2))
        shape = (lead[0] * chips if shared and lead else lead[0] if lead else 0, *lead[1:], *tail) if lead else tail
        residual = case.normal(*shape).to(dtype) if case.pick.random() < 0.5 else None
        arguments |= dict(scale=scale, shift=shift, residual=residual, relu=case.pick.random() < 0.5)
        for change, values in (("scale", scale), ("shift", shift), ("residual", residual)):
            if values is None:
                continue
            values = values.double().reshape(y.shape if change == "residual" else row)
            y, size = (y * values, size * values.abs()) if change == "scale" else (y + values, size + values.abs())
        y = y.clamp_min(0) if arguments["relu"] else y
    if backward:
        weight, x = weight.float().detach().requires_grad_(), x.detach().requires_grad_()
    found = function(x, weight, bias, **arguments)
    if found.dtype != dtype:
        case.fail(f"y is {found.dtype}")
    case.close("y", found.detach().reshape(y.shape), y, unit * size)
    if backward and found.numel():
        gradients(case, found, x, weight, w_p, b, exact, unit)


def gradients(case, found, x, weight, w_p, b, exact, unit):
    """dL/dx and dL/dW of a product, for L = sum(y * random numbers)."""
    seed = case.normal(*found.shape).to(found.dtype)
    found.backward(seed)
    results = []
    for sign in (lambda t: t, torch.abs):
        leaves = [sign(t.detach().double()).requires_grad_() for t in (x, w_p)]
        y = exact(*leaves, None if b is None else sign(b))
        y.backward(sign(seed.double()).reshape(y.shape))
        results.append([leaves[0].grad, leaves[1].grad.sum(0)])
    rows = max(1, found.numel() // weight.shape[0])
    for name, leaf, value, size in zip(("dL/dx", "dL/dW"), (x, weight), *results):
        many = 1 + (rows if name == "dL/dW" else weight.numel() // 64) / 64
        case.close(name, leaf.grad, value, (unit * many if unit < 2.0**-7 else unit) * size)


def layers(case):
    """A converted layer is the function with the layer's stream."""
    (nvm, _), seed = case.device(), case.pick.getrandbits(32)
    draws = range(case.choose("chips", 1, 2))
    torch.manual_seed(seed)
    plain, x = case.pick.choice(
        [(nn.Linear(9, 5), case.normal(4, 9)), (nn.Conv2d(4, 6, 3, padding=1), case.normal(2, 4, 7, 6))]
    )
    noisy = nft.convert(nn.Sequential(plain), nvm).eval()
    layer, key = noisy[0], nft.noise_key(seed, draws)
    with torch.no_grad(), nft.chips(noisy, seed=seed, draws=draws):
        found = noisy(x)
    function = nft.noisy_linear if isinstance(plain, nn.Linear) else nft.noisy_conv2d
    options = {} if isinstance(plain, nn.Linear) else dict(padding=1)
    expected = function(x, plain.weight, plain.bias, nvm=nvm, key=key, stream=layer.stream, **options)
    case.equal("a layer's y", found, expected.detach())


KINDS = [program, program, linear, linear, conv, conv, layers]


def check(seed):
    """Runs one case. Returns the name of its kind.

    Raises:
        AssertionError: a result differs from its definition. The message holds the case's choices.
    """
    case = Case(seed)
    kind = case.pick.choice(KINDS)
    case.facts["kind"] = kind.__name__
    try:
        kind(case)
    except AssertionError:
        raise
    except Exception as error:
        case.fail(f"{type(error).__name__} {error}")
    return kind.__name__


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    arguments = parser.parse_args()
    began = time.monotonic()
    kinds = Counter(check(seed) for seed in range(arguments.start, arguments.start + arguments.count))
    print(f"{arguments.count} cases agree ({dict(kinds)}), {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
