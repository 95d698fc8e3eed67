"""Several chips in one pass: chip s of the result is what one pass with chip s gives, for every kind of model."""

import collections
import copy
import dataclasses
import pickle
import random
import typing
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

import nft_ext as nft
from nft_ext.nn.contexts import why_apart

NVM = nft.NVMDevice(sigma=0.1)
DRAWS = [4, 0, 7]


def rand(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Calling(nn.Module):
    """forward = function(self.net, ...)."""

    def __init__(self, function, net=None):
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.net = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)) if net is None else net

    def forward(self, *args, **kwargs):
        return self.function(self.net, *args, **kwargs)


def noisy(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of layers that stay noise-free
        return nft.convert(model, NVM).eval()


def apart(model, *args, **kwargs):
    results = []
    for draw in DRAWS:
        with torch.no_grad(), nft.chips(model, seed=3, draws=draw):
            results.append(model(*args, **kwargs))
    return results


def together(model, *args, **kwargs):
    with torch.no_grad(), nft.chips(model, seed=3, draws=DRAWS):
        return model(*args, **kwargs)


# ---- inputs in containers


@dataclasses.dataclass(frozen=True)
class Fields:
    x: torch.Tensor
    scale: float


class Named(typing.NamedTuple):
    x: torch.Tensor
    scale: float


class Encoding(collections.UserDict):
    """As the tokenizers of transformers return it: no dict, and items are attributes too."""

    def __getattr__(self, name):
        return self.data[name]


class Items(collections.OrderedDict):
    """As the results of transformers: a subclass of OrderedDict."""


CONTAINERS = {
    "dict": (lambda net, b: net(b["x"]), lambda x: {"x": x, "scale": 2.0}),
    "keyword": (lambda net, *, b: net(b["x"]), lambda x: {"x": x}),
    "list": (lambda net, b: net(b[0]), lambda x: [x, None]),
    "tuple in list": (lambda net, b: net(b[0][1]), lambda x: [("a", x)]),
    "named tuple": (lambda net, b: net(b.x) * b.scale, lambda x: Named(x, 2.0)),
    "dataclass": (lambda net, b: net(b.x) * b.scale, lambda x: Fields(x, 2.0)),
    "mapping": (lambda net, b: net(b.x), lambda x: Encoding(x=x, n=1)),
    "subclass of a dict": (lambda net, b: net(b["x"]), lambda x: Items(x=x)),
}


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.filterwarnings("error")
def test_every_chip_sees_the_whole_batch_in_a_container(name):
    function, pack = CONTAINERS[name]
    model, given = noisy(Calling(function)), pack(rand(4, 8))
    call = {"b": given} if name == "keyword" else {}
    args = () if call else (given,)
    expected = apart(model, *args, **call)
    torch.testing.assert_close(together(model, *args, **call), torch.cat(expected))
    own = pack(torch.cat([rand(4, 8, seed=s) for s in range(3)]))  # each chip's own input
    with torch.no_grad(), nft.chips(model, seed=3, draws=DRAWS, repeat=False):
        found = model(b=own) if call else model(own)
    with torch.no_grad(), nft.chips(model, seed=3, draws=DRAWS[1]):
        mine = pack(rand(4, 8, seed=1))
        torch.testing.assert_close(found[4:8], model(b=mine) if call else model(mine))


def test_the_given_container_and_what_is_no_batch_stay_as_they_are():
    seen = []
    model = noisy(Calling(lambda net, b: seen.append(b) or net(b["x"])))
    given = {"x": rand(4, 8), "factor": torch.tensor(2.0), "flag": True, "size": torch.Size([4, 8])}
    kept = dict(given)
    together(model, given)
    assert given == kept and all(given[name] is kept[name] for name in kept)
    assert seen[-1]["x"].shape == (12, 8)
    assert all(seen[-1][name] is kept[name] for name in ("factor", "flag", "size"))


@pytest.mark.parametrize("pack", [lambda x: x, lambda x: {"x": x}, lambda x: [("a", x)]])
def test_inputs_that_are_not_chip_major_are_refused_in_containers_too(pack):
    model = noisy(Calling(lambda net, b: net(b)))
    with nft.chips(model, draws=DRAWS, repeat=False):
        with pytest.raises(ValueError, match=r"^inputs: must be chip-major \[3 \* B, ...\].*; got \[4, 8\]"):
            model(pack(rand(4, 8)))


def test_results_in_containers():
    model = noisy(Calling(lambda net, x: {"logits": net(x), "loss": net(x).square().mean(), "n": 3}))
    expected, found = apart(model, rand(4, 8)), together(model, rand(4, 8))
    torch.testing.assert_close(found["logits"], torch.cat([one["logits"] for one in expected]))
    torch.testing.assert_close(found["loss"], torch.stack([one["loss"] for one in expected]).mean())
    assert found["n"] == 3


# ---- models whose dim 0 is not the batch, or that join and split it


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.lstm, self.last = nn.Linear(8, 8), nn.LSTM(8, 8), nn.Linear(8, 3)

    def forward(self, x):  # [T, B, 8]
        return self.last(self.lstm(self.first(x))[0])


class Queries(nn.Module):
    """Attention of learned queries to the batch, as in a detection transformer."""

    def __init__(self, count):
        super().__init__()
        self.queries, self.q, self.k = nn.Parameter(rand(count, 8)), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):  # [B, T, 8]
        return self.k(x) @ self.q(self.queries).mT


class Positions(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.first, self.last = nn.Parameter(rand(64, 1, 8)), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):  # [T, B, 8]
        return self.last(self.first(x) + self.table[: len(x)])


class Silent(nn.Module):
    """Mixes the batch in a branch that does not count yet."""

    def __init__(self):
        super().__init__()
        self.gate, self.a, self.b = nn.Parameter(torch.zeros(())), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        h = self.a(x)
        return h + self.gate * self.b(h.mean(0, keepdim=True).expand_as(h))


def transformer():
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False)


MIXING = {
    "sequence-first transformer": (transformer, lambda: [rand(6, 4, 8)]),
    "sequence-first LSTM": (Recurrent, lambda: [rand(6, 4, 8)]),
    "siamese, joined along dim 0": (
        lambda: Calling(lambda net, a, b: net(torch.cat([a, b]))[: len(a)] - net(b)),
        lambda: [rand(4, 8), rand(4, 8, seed=2)],
    ),
    "video, frames first": (
        lambda: Calling(lambda net, x: net(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(0)),
        lambda: [rand(5, 4, 8)],
    ),
    "odd number of learned queries": (lambda: Queries(3), lambda: [rand(4, 5, 8)]),
    "even number of learned queries": (lambda: Queries(4), lambda: [rand(4, 5, 8)]),
    "table of positions": (Positions, lambda: [rand(5, 4, 8)]),
    "a branch that does not count yet": (Silent, lambda: [rand(4, 8)]),
    "an input that cannot be repeated": (
        lambda: Calling(lambda net, source: net(source())),
        lambda: [lambda: rand(4, 8)],
    ),
}


@pytest.mark.parametrize("name", MIXING)
def test_a_model_that_mixes_chips_runs_them_one_by_one_and_says_so_once(name):
    make, inputs = MIXING[name]
    torch.manual_seed(0)
    model, x = noisy(make()), inputs()
    expected = torch.cat(apart(model, *x))
    with pytest.warns(UserWarning, match=rf"^chips: {type(model).__name__} runs one chip per pass.*two chips in one"):
        assert torch.equal(together(model, *x), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(together(model, *x), expected)


@pytest.mark.parametrize("context", [dict(sigma=0.0), dict(enabled=False)])
def test_the_outcome_of_the_check_does_not_depend_on_the_noise(context):
    """Without noise all chips are the same, and a mixture would not show."""
    model, x = noisy(Recurrent()), rand(6, 4, 8)
    with nft.noise(model, **context), pytest.warns(UserWarning, match="one chip per pass"):
        together(model, x)
    assert torch.equal(together(model, x), torch.cat(apart(model, x)))


def test_gradients_of_chips_one_by_one_are_those_of_passes_per_chip():
    model, x = noisy(Recurrent()), rand(6, 4, 8)
    gradients = []
    for several in (True, False):
        model.zero_grad()
        for draws in [DRAWS] if several else [[draw] for draw in DRAWS]:
            with nft.chips(model, seed=3, draws=draws), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for found, expected in zip(*gradients):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("repeat", [True, False])
def test_held_weights_and_inputs_of_their_own_work_one_by_one(repeat):
    model = noisy(Recurrent())
    parts = [rand(6, 4, 8, seed=1 if repeat else s) for s in range(3)]
    with torch.no_grad(), pytest.warns(UserWarning, match="one chip per pass"):
        with nft.chips(model, seed=3, draws=DRAWS, repeat=repeat, programmed=True):
            found = model(parts[0] if repeat else torch.cat(parts))
    for chip, draw in enumerate(DRAWS):
        with torch.no_grad(), nft.chips(model, seed=3, draws=draw, programmed=True):
            assert torch.equal(found.chunk(3)[chip], model(parts[chip]))


def test_results_that_cannot_be_joined_are_refused():
    model = noisy(Calling(lambda net, x: iter(net(x.mean(0, keepdim=True)))))
    with nft.chips(model, draws=DRAWS), pytest.raises(ValueError, match="^model: must return tensors, or containers"):
        model(rand(4, 8))
    with nft.chips(model, draws=1):
        assert len(list(model(rand(4, 8)))) == 1


def test_hooks_see_their_calls_once_per_chip():
    model, x, seen = noisy(Recurrent()), rand(6, 4, 8), []
    with torch.no_grad(), nft.chips(model, seed=3, draws=DRAWS), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model(x)
        model.register_forward_pre_hook(lambda m, args: (2 * args[0],))
        model.register_forward_hook(lambda m, args, y: seen.append(len(y)) or y + 1)
        found = model(x)
    assert seen == [6] * 3
    assert torch.equal(found, torch.cat(apart(model, x)))


# ---- the check: what it costs and what it leaves behind


class Counting(nn.Module):
    """Draws random numbers, and changes attributes, lists and buffers."""

    def __init__(self):
        super().__init__()
        self.fc, self.drop = nn.Linear(8, 8), nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))
        self.times, self.log = 0, []

    def forward(self, x):
        self.times += 1
        self.log.append(len(x))
        self.calls += 1
        self.latest = x
        self.random = random.random(), np.random.rand(), torch.rand(())  # noqa: NPY002
        return self.fc(self.drop(x))


@pytest.mark.parametrize("training", [True, False])
def test_the_check_leaves_no_trace(training):
    model = noisy(Counting()).train(training)
    torch.manual_seed(0), random.seed(0), np.random.seed(0)  # noqa: NPY002
    twin = copy.deepcopy(model)
    expected = random.random(), np.random.rand(), torch.rand(())  # noqa: NPY002
    torch.manual_seed(0), random.seed(0), np.random.seed(0)  # noqa: NPY002
    with nft.chips(model, draws=DRAWS):
        model(rand(4, 8))
    assert (model.times, model.log, float(model.calls), len(model.latest)) == (1, [12], 1.0, 12)
    assert model.random == expected
    assert model.training == model.drop.training == training
    assert vars(model).keys() - vars(twin).keys() == {"latest", "random"}


class Centred(nn.Module):
    """Batch statistics of its own, in training mode only, and all kinds of dropout."""

    def __init__(self, centred):
        super().__init__()
        self.centred, self.fc, self.last = centred, nn.Linear(8, 8), nn.Linear(8, 3)
        self.drop, self.attention = nn.Dropout(0.5), nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)

    def forward(self, x):  # [B, T, 8]
        x = nn.functional.dropout(self.fc(x), 0.5, self.training)
        x = self.drop(self.attention(x, x, x)[0])
        x = nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=0.5 if self.training else 0.0)
        return self.last(x - x.mean(0) if self.training and self.centred else x)


def test_the_check_is_made_in_training_mode_too_but_without_dropout():
    sound, mixing = (noisy(Centred(centred)) for centred in (False, True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for training in (False, True):
            together(sound.train(training), rand(4, 5, 8))
        together(mixing, rand(4, 5, 8))
    with pytest.warns(UserWarning, match="one chip per pass.* of the largest result|at the input of layer 'last'"):
        together(mixing.train(), rand(4, 5, 8))


def test_the_check_runs_once_per_structure_and_kind_of_input():
    passes = []
    model = noisy(Calling(lambda net, x: net(x)))
    handle = model.register_forward_hook(lambda *_: passes.append(0))

    def checked(x):
        passes.clear()
        together(model, x)
        return len(passes) == 4

    assert checked(rand(4, 8)) and not checked(rand(4, 8)) and not checked(rand(7, 8))
    assert checked(rand(4, 2, 8)) and checked({"x": rand(4, 8)}["x"].double().float().requires_grad_()) is False
    model.net[1] = nn.Sigmoid()
    assert checked(rand(4, 8)) and not checked(rand(4, 8))
    handle.remove()


def test_no_check_and_no_hook_with_one_chip():
    passes = []
    model = noisy(Calling(lambda net, x: passes.append(0) or net(x)))
    with nft.chips(model, draws=3):
        assert not model._forward_pre_hooks and not model._forward_hooks
        model(rand(4, 8))
    assert len(passes) == 1


class Recording(TorchDispatchMode):
    """Counts the operations, as a profiler does."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def test_where_no_check_can_run_every_chip_has_its_pass():
    x = rand(4, 8)
    for model in (noisy(Calling(lambda net, x: net(x))), noisy(Recurrent())):
        given = x if isinstance(model, Calling) else rand(6, 4, 8)
        with Recording():
            found = together(model, given)
        assert torch.equal(found, torch.cat(apart(model, given)))
    model = noisy(Calling(lambda net, x: net(x)))
    parameters = dict(model.named_parameters())
    with nft.chips(model, seed=3, draws=DRAWS):
        gradient = torch.func.grad(lambda p: torch.func.functional_call(model, p, (x,)).sum())(parameters)
        model(x).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradient[name], parameter.grad)


def test_the_reason_is_known_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert why_apart(noisy(Calling(lambda net, x: net(x))), rand(4, 8)) is None
        assert why_apart(noisy(Recurrent()), rand(6, 4, 8)).startswith("two chips in one pass differ from two passes")


def test_an_error_of_the_forward_itself_comes_through():
    model = noisy(Calling(lambda net, x: net(x)))
    with nft.chips(model, draws=DRAWS), warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=r"x: must have the shape \[..., in\] with in = 8"):
            model(rand(4, 9))
        assert model(rand(4, 8)).shape == (12, 8)


# ---- the entry


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def encode(self, x):
        return self.body(x).relu()

    def forward(self, x):
        return self.head(self.encode(x))


@pytest.mark.parametrize(
    "call", [lambda m: m.encode(rand(4, 8)), lambda m: m.body(rand(4, 8)), lambda m: m.forward(rand(4, 8))]
)
def test_layers_reached_past_the_model_are_refused_on_several_chips(call):
    model = noisy(Encoder())
    with nft.chips(model, draws=range(2)):
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"^body: must be reached through a call of the model.*; got a call"):
                call(model)
            model(rand(4, 8))
    with nft.chips(model, seed=3, draws=1):
        one = call(model)
    with nft.chips(model.body, seed=3, draws=range(2)):
        torch.testing.assert_close(model.body(rand(4, 8)).chunk(2)[1].relu(), model.encode(rand(4, 8))[4:])
    assert len(one) == 4


def test_an_interrupted_forward_leaves_no_mark():
    model = noisy(Calling(lambda net, x: net(x)))

    def interrupt(*_):
        raise KeyboardInterrupt

    with nft.chips(model, seed=3, draws=DRAWS):
        expected = model(rand(4, 8))
        handle = model.net[1].register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(rand(4, 8))
        handle.remove()
        assert torch.equal(model(rand(4, 8)), expected)


def test_wrappers_of_the_model_and_around_it():
    model, x = noisy(Encoder()), rand(4, 8)
    expected = together(model, x)
    compiled = torch.compile(model, backend="eager")
    wrappers = (nn.DataParallel(model), nn.Sequential(model), compiled)
    for given in (model, *wrappers):
        for called in (*wrappers, model) if given is model else (given,):
            with torch.no_grad(), nft.chips(given, seed=3, draws=DRAWS):
                torch.testing.assert_close(called(x), expected)
    torch._dynamo.reset()


def test_a_compiled_model_with_parts_outside_of_its_graphs():
    outside = torch._dynamo.disable(lambda layer, x: layer(x))
    model, x = noisy(Calling(lambda net, x: outside(net[2], net[0](x).tanh()))), rand(4, 8)
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad(), nft.chips(model, seed=3, draws=DRAWS):
        assert torch.equal(compiled(x), model(x))
    torch._dynamo.reset()


class Running(nn.Module):
    """Sums along dim 0, as a recurrent network does."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x, scale=None):  # [T, B, 8]
        x = self.last(self.first(x).cumsum(0))
        return x if scale is None else x * scale


@pytest.mark.parametrize("repeat, extra", [(True, ()), (False, (torch.ones(6, 1, 1),))])
def test_a_compiled_model_is_checked_at_its_first_call(repeat, extra):
    torch._dynamo.reset()
    sound, mixing = noisy(Calling(lambda net, x, *_: net(x))), noisy(Running())
    extra = [t if repeat else t.repeat(3, 1, 1) for t in extra]
    x = rand(6, 4, 8) if repeat else rand(18, 4, 8)
    with torch.no_grad():
        compiled = torch.compile(mixing, fullgraph=True, backend="eager")
        for _ in range(2):
            with nft.chips(mixing, draws=DRAWS, repeat=repeat):
                with pytest.raises(RuntimeError, match="^model: must give the same on several chips.*two chips in one"):
                    compiled(x, *extra)
        with nft.chips(mixing, draws=1):
            assert torch.equal(compiled(x, *extra), mixing(x, *extra))
        compiled = torch.compile(sound, fullgraph=True, backend="eager")
        for _ in range(2):
            with nft.chips(sound, seed=3, draws=DRAWS, repeat=repeat):
                assert torch.equal(compiled(x, *extra), sound(x, *extra))
                with torch.compiler.set_stance("fail_on_recompile"):
                    compiled(x, *extra)
    torch._dynamo.reset()


def test_the_operator_of_compiled_models():
    x = rand(4, 8).requires_grad_()
    given = (x, [rand(4, 1)], ["", "scale"], "0", 1)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    opcheck(torch.ops.nft_ext.checked_inputs.default, given, test_utils=tests)
    torch.ops.nft_ext.checked_inputs(*given).square().sum().backward()
    assert torch.equal(x.grad, 2 * x.detach())


def test_a_model_that_calls_itself_repeats_its_inputs_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x, again=True):
            return self(self.fc(x), again=False) if again else self.fc(x)

    model = noisy(Twice())
    torch.testing.assert_close(together(model, rand(4, 8)), torch.cat(apart(model, rand(4, 8))))


def test_a_part_on_chips_of_its_own():
    model, x = noisy(Encoder()), rand(4, 8)
    with torch.no_grad():
        with nft.chips(model, seed=3, draws=DRAWS), nft.chips(model.body, seed=9):
            found = model(x)  # one body for all heads
        for chip, draw in enumerate(DRAWS):
            with nft.chips(model, seed=3, draws=draw), nft.chips(model.body, seed=9):
                torch.testing.assert_close(found.chunk(3)[chip], model(x))
        with nft.chips(model.body, seed=9, draws=range(2)), nft.chips(model, seed=3, draws=DRAWS):
            torch.testing.assert_close(model(x), together(model, x))  # the innermost context decides
        with nft.chips(model, seed=3, draws=DRAWS), nft.chips(model.body, seed=9, draws=range(2)):
            with pytest.raises(ValueError, match="^draws: must be one chip for a part of a model that runs on several"):
                model(x)


def test_a_fused_model_and_its_cascade():
    torch.manual_seed(0)
    net = noisy(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()))
    fused, x = nft.fuse(net), rand(4, 3, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(together(fused, x), torch.cat(apart(net, x)))
    with (
        torch.no_grad(),
        nft.chips(fused, draws=range(2)),
        pytest.raises(RuntimeError, match="must be reached through"),
    ):
        fused.get_submodule("cascade0")(tuple(fused.children())[:2], rand(4, 3, 8, 8))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_made_inside_keeps_the_chips_and_their_rules(copied):
    model, x = noisy(Encoder()), rand(4, 8)
    with nft.chips(model, seed=3, draws=DRAWS):
        twin = copied(model)
    with torch.no_grad():
        assert torch.equal(twin(x), together(model, x))
        with pytest.raises(RuntimeError, match="must be reached through"):
            twin.encode(x)
        with nft.chips(twin, seed=3, draws=[1, 2]):
            assert twin(x).shape == (8, 3)
        assert twin(x).shape == (12, 3)
        for plain in (nft.restore(twin), nft.program(twin), nft.convert(twin, NVM)):
            assert plain(x).shape == (4, 3)
