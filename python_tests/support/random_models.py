"""Random noisy models with in-place operations and aliases, to compare fused models with unfused ones.

A program is a list of steps on named values [B, 4, 6, 6]. Steps assign new values, give a value a second name, take
views, and write in place through any name.
"""

import contextlib
import random

import torch
from torch import fx, nn
from torch.nn import functional as F

import nft_ext as nft
from support.fusable import trained

X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1))


class WritesItsInput(nn.Module):
    """torch.fx cannot trace it: it decides on values."""

    def forward(self, x):
        return x.mul_(0.5) if x.sum() > 0 else x.add_(0.25)


class KeepsItsInput(nn.Module):
    """torch.fx cannot trace it: the next call writes to what this call got."""

    def __init__(self):
        super().__init__()
        self.last = None

    def forward(self, x):
        if self.last is not None and bool(x.isfinite().all()):
            self.last.mul_(0.5)
        self.last = x
        return x.sin()


@fx.wrap
def written(x):
    x[:, 1:2] += 0.125
    return x


class Model(nn.Module):
    """Runs a program: (operation, result's name, operands' names, index of a module)."""

    def __init__(self, program, returned):
        super().__init__()
        self.program, self.returned = program, returned
        used = {kind: sorted({step[3] % 24 for step in program if step[0] == kind}) for kind in ("conv", "norm")}
        self.convs = nn.ModuleDict({str(i): conv(i) for i in used["conv"]})
        self.norms = nn.ModuleDict({str(i): nn.BatchNorm2d(4) for i in used["norm"]})
        self.relus = nn.ModuleList([nn.ReLU(), nn.ReLU(inplace=True)])
        self.identity, self.dropout = nn.Identity(), nn.Dropout(0.5)
        self.writes, self.keeps = WritesItsInput(), KeepsItsInput()
        self.narrow = nn.Parameter(torch.randn(4, 1, 1))
        self.register_buffer("wide", torch.randn(len(X), 4, 6, 6))

    def forward(self, x):
        values = {"x": x}
        for operation, result, operands, index in self.program:
            values[result] = OPERATIONS[operation](self, index, *(values[name] for name in operands))
        found = tuple(values[name] for name in self.returned)
        return found if len(found) > 1 else found[0]


def conv(i):
    if i % 4 == 3:
        return nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
    return nn.Conv2d(4, 4, 1 + 2 * (i % 2), padding=i % 2, groups=1 + i % 3 % 2, bias=i % 4 != 2)


def augmented(symbol):
    def run(m, i, a, *others):
        b = others[0] if others else 0.5
        if symbol == "+":
            a += b
        elif symbol == "-":
            a -= b
        else:
            a *= b
        return a

    return run


def part_set(m, i, a, b):
    a[:, i % 4] = b[:, 0]
    return a


def part_added(m, i, a, b):
    a[:, i % 4 : i % 4 + 1] += b[:, :1]
    return a


def chunk_written(m, i, a):
    first, second = a.chunk(2, 1)
    first += second
    return a


def halves(m, i, a, b):
    first, _ = a.split(2, 1)
    return torch.cat([first, b.chunk(2, 1)[1]], 1)


def made_here(m, i, a):
    y = torch.zeros(4, 1, 1)
    y[i % 4] = 0.5
    y += a.mean((0, 2, 3)).view(4, 1, 1)
    return y + a


def parameter_written(m, i, a):
    m.narrow.mul_(0.9)
    return a + m.narrow


def shape_in_place(m, i, a):
    size = a.shape
    a.squeeze_().unsqueeze_(0)
    y = a.view(size)
    a.squeeze_(0)
    return y


def in_another_type(m, i, a, b):
    a += b.bfloat16()
    return a


OPERATIONS = {
    "conv": lambda m, i, a: m.convs[str(i)](a),
    "norm": lambda m, i, a: m.norms[str(i % 24)](a),
    "relu": lambda m, i, a: m.relus[i % 2](a),
    "relu function": lambda m, i, a: F.relu(a, i % 2 == 1),
    "relu_": lambda m, i, a: a.relu_(),
    "add": lambda m, i, a, b: (a + b, torch.add(a, b), a.add(b))[i % 3],
    "add_": lambda m, i, a, b: a.add_(b),
    "+=": augmented("+"),
    "-=": augmented("-"),
    "*=": augmented("*"),
    "+= number": lambda m, i, a: augmented("+")(m, i, a),
    "*= number": lambda m, i, a: augmented("*")(m, i, a),
    "name": lambda m, i, a: a,
    "identity": lambda m, i, a: m.identity(a),
    "dropout": lambda m, i, a: (m.dropout(a), F.dropout(a, 0.5, m.training))[i % 2],
    "view": lambda m, i, a: (a[:], a.view_as(a), a.detach(), a.data, a.contiguous(), a.flatten(1).view_as(a))[i % 6],
    "copy": lambda m, i, a: (a.clone(), a * 1.0, a.sin())[i % 3],
    "part set": part_set,
    "part added": part_added,
    "chunk written": chunk_written,
    "halves": halves,
    "narrow": lambda m, i, a: (a + m.narrow, a.add_(m.narrow), m.narrow + a)[i % 3],
    "wide": lambda m, i, a: (a + m.wide * 2, m.wide + a, a.add_(m.wide))[i % 3],  # one chip only
    "made here": made_here,
    "in another type": in_another_type,
    "parameter written": parameter_written,
    "into another": lambda m, i, a, b: torch.add(a, 0.5, out=b),
    "shape in place": shape_in_place,
    "pool": lambda m, i, a: a * torch.sigmoid(F.adaptive_avg_pool2d(a, 1)),
    "writes": lambda m, i, a: m.writes(a),
    "keeps": lambda m, i, a: m.keeps(a),
    "wrapped": lambda m, i, a: written(a),
}
_TWO = {"add", "add_", "+=", "-=", "*=", "part set", "part added", "halves", "in another type", "into another"}
_ADDS = ["add", "add", "add_", "+=", "+=", "narrow", "wide", "in another type"]
_CHAIN = [(["conv"], 1.0), (["norm"], 0.6), (_ADDS, 0.7), (["relu", "relu_", "relu function"], 0.6)]
_PARALLEL = ["conv", "copy", "copy", "view", "name"]  # what may lie inside a chain that can be folded


def operations(r):
    """Chains of a layer, mixed with any other operations: (operation, whether it goes on with the chain)."""
    for _ in range(r.randint(1, 4)):
        for kinds, often in _CHAIN:
            while r.random() < 0.3:
                yield r.choice(_PARALLEL if r.random() < 0.6 else list(OPERATIONS)), False
            if r.random() < often:
                yield r.choice(kinds), kinds != ["conv"] and r.random() < 0.9


def random_model(seed):
    """A noisy model in eval mode, other for each seed."""
    r = random.Random(seed)
    names, program, convs, last = ["x"], [], list(range(8)), "x"
    r.shuffle(convs)
    for operation, follows in operations(r):
        first = last if follows else r.choice(names)
        second = [r.choice(names[-3:] if r.random() < 0.5 else names)] if operation in _TWO else []
        if second and operation not in ("halves", "part set") and r.random() < 0.3:
            first, second = second[0], [first]
        index = r.randrange(24)
        if operation == "conv":  # mostly another layer, sometimes one for the second time
            index = convs.pop() if convs and r.random() < 0.95 else r.randrange(8)
        if operation == "norm" and follows:
            index = len(program)
        result = r.choice(names) if r.random() < 0.1 else f"v{len(names)}"
        program.append((operation, result, [first, *second], index))
        if result not in names:
            names.append(result)
        if follows or operation == "conv":
            last = result
    returned = [program[-1][1], *r.sample(names, r.randint(0, min(2, len(names) - 1)))]
    torch.manual_seed(seed)
    return trained(Model(program, returned), seed).requires_grad_(False)


def takes_two_chips(net):
    return all(step[0] != "wide" for step in net.program)


def results(model, x, seed, two_chips=False):
    """Everything that a caller can see of forwards, or the type of the error: results, and the written inputs.

    Two forwards draw their chips from torch's generator: the first of a cascade calls its layers, the second the
    operator. The third has chips by key, gradients on, no noise, programmed weights or two chips.
    """
    ways = [
        lambda: nft.chips(model, seed=seed),
        torch.enable_grad,
        lambda: nft.noise(model, enabled=False),
        lambda: nft.chips(model, seed=seed, programmed=True),
        lambda: nft.chips(model, seed=seed, draws=range(2 if two_chips else 1)),
    ]
    found, fresh = [], contextlib.nullcontext
    for way in (fresh, fresh, ways[seed % 5]):
        given = x.clone()
        torch.manual_seed(seed)
        try:
            with torch.no_grad(), way():
                y = model(given)
        except RuntimeError as error:
            return type(error)
        found += [t.clone() for t in (y if isinstance(y, tuple) else (y,))] + [given]
    return found


def difference(found, expected):
    """The largest difference, relative to the expected values; infinite if the types or shapes differ."""
    if not isinstance(expected, list) or not isinstance(found, list):
        return 0.0 if found == expected else float("inf")
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return float("inf")
        a, b = a.double(), b.double()
        if not torch.equal(a.isfinite(), b.isfinite()):
            return float("inf")
        if (finite := b.isfinite()).any():
            worst = max(worst, float((a - b)[finite].abs().max() / b[finite].abs().max().clamp(min=1e-30)))
    return worst
