"""Layers of any kind on crossbars: the module's own forward runs on the programmed weights."""

import copy
import io
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint

import nft_ext as nft
from nft_ext.nn.observed import observed
from nft_ext.nn.weight_level import WeightLevelLayer
from nft_ext.ops.keys import stream_of
from support.paths import ROOT

NVM = nft.NVMDevice(sigma=0.2)


def rand(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Transposed(nn.Module):
    """x W + b, with the weight stored [in, out] as in GPT-2."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(rand(6, 4)), nn.Parameter(rand(4))

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight)


class Experts(nn.Module):
    """A mixture: each row goes to one of the experts."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Parameter(rand(3, 8, 6)), nn.Parameter(rand(3, 4, 8))

    def forward(self, x):
        chosen = torch.arange(len(x)) % 3
        return torch.stack([self.down[e] @ (self.up[e] @ row).relu() for e, row in zip(chosen.tolist(), x)])


class Standardized(nn.Conv2d):
    """As timm's StdConv2d: the forward changes its weight first."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


class Counting(nn.Conv1d):
    """Writes to itself in every forward."""

    calls = 0

    def forward(self, x):
        self.calls = self.calls + 1
        return super().forward(x)


nft.register_crossbar(Transposed, layout="io")
nft.register_crossbar(Experts, ["up", "down"], layout="eoi")


def old_weight_norm(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer)


# name -> (module, its inputs, whether the first input's dim 0 is the batch)
KINDS = {
    "Conv1d": (lambda: nn.Conv1d(3, 4, 3, groups=1), [(4, 3, 9)]),
    "Conv3d": (lambda: nn.Conv3d(4, 4, 2, groups=2), [(2, 4, 3, 3, 3)]),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(3, 4, 3, stride=2), [(4, 3, 5)]),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), [(4, 4, 5, 5)]),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(2, 3, 2), [(2, 2, 3, 3, 3)]),
    "Bilinear": (lambda: nn.Bilinear(3, 4, 5), [(4, 3), (4, 4)]),
    "attention": (lambda: nn.MultiheadAttention(8, 2, batch_first=True), [(4, 5, 8)] * 3),
    "attention of other sizes": (
        lambda: nn.MultiheadAttention(8, 2, batch_first=True, kdim=6, vdim=7),
        [(4, 5, 8), (4, 5, 6), (4, 5, 7)],
    ),
    "RNN": (lambda: nn.RNN(3, 5, batch_first=True), [(4, 6, 3)]),
    "GRU": (lambda: nn.GRU(3, 5, 2, batch_first=True, bias=False), [(4, 6, 3)]),
    "LSTM": (lambda: nn.LSTM(3, 5, batch_first=True), [(4, 6, 3)]),
    "LSTM, bidirectional with proj": (
        lambda: nn.LSTM(3, 5, 2, batch_first=True, bidirectional=True, proj_size=2),
        [(4, 6, 3)],
    ),
    "RNNCell": (lambda: nn.RNNCell(3, 5), [(4, 3)]),
    "GRUCell": (lambda: nn.GRUCell(3, 5), [(4, 3)]),
    "LSTMCell": (lambda: nn.LSTMCell(3, 5), [(4, 3)]),
    "registered, io": (Transposed, [(4, 6)]),
    "registered, eoi": (Experts, [(3, 6)]),
    "subclass": (lambda: Standardized(3, 4, 3), [(4, 3, 6, 6)]),
    "out_proj's class": (lambda: nn.modules.linear.NonDynamicallyQuantizableLinear(6, 4), [(4, 6)]),
    "pruned": (lambda: prune.l1_unstructured(nn.Linear(6, 4), "weight", 0.3), [(4, 6)]),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), [(4, 3, 6, 6)]),
    "weight norm by hooks": (lambda: old_weight_norm(nn.Linear(6, 4)), [(4, 6)]),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Linear(6, 4)), [(4, 6)]),
    "spectral norm by hooks": (lambda: nn.utils.spectral_norm(nn.Conv1d(3, 4, 3)), [(4, 3, 9)]),
    "parametrized LSTM": (
        lambda: parametrizations.weight_norm(nn.LSTM(3, 5, batch_first=True), "weight_hh_l0"),
        [(4, 6, 3)],
    ),
}
UNPICKLED_BY_TORCH = ("weight norm", "spectral norm", "parametrized LSTM")
UNCOPIED_BY_TORCH = ("pruned", "weight norm by hooks")


@pytest.fixture(params=KINDS)
def kind(request):
    """(name, plain module in eval mode, inputs)."""
    make, shapes = KINDS[request.param]
    torch.manual_seed(0)
    return request.param, make().eval(), [rand(*shape, seed=n) for n, shape in enumerate(shapes)]


def first(result):
    return result[0] if isinstance(result, tuple) else result


def call(model, inputs):
    return first(model(*inputs))


def layer_of(model):
    (layer,) = nft.noisy_layers(model).values()
    return layer


# ---- what the forward computes


def test_a_forward_is_the_module_on_its_programmed_weights(kind):
    """Bit for bit. Both without gradients: torch's matmul takes another way for weights that require one."""
    _, plain, x = kind
    noisy = nft.convert(plain, NVM)
    own = next(base for base in type(plain).__mro__ if "Parametrized" not in base.__name__)
    assert isinstance(noisy, WeightLevelLayer) and isinstance(noisy, own)
    assert list(noisy.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in noisy.named_parameters()] == [name for name, _ in plain.named_parameters()]
    chip = nft.program(noisy, seed=5, draw=3).requires_grad_(False)
    assert not any(isinstance(m, nft.nn.NoisyLayer) for m in chip.modules())
    for programmed in (False, True):
        with torch.no_grad(), nft.chips(noisy, seed=5, draws=3, programmed=programmed):
            assert torch.equal(call(noisy, x), call(chip, x))
    assert not torch.equal(call(chip, x), call(plain, x))


def test_the_programmed_weights_are_those_of_each_matrix_with_its_stream(kind):
    _, plain, _ = kind
    noisy = nft.convert(plain, NVM)
    chip = nft.program(noisy, seed=5, draw=3)
    layer = layer_of(noisy)
    assert len({m.stream for m in layer.matrices()}) == len(layer.matrices())
    for matrix, weight in zip(layer.matrices(), layer.master_weights()):
        assert matrix.stream == stream_of(matrix.name)
        stored = {"layout": matrix.layout, "groups": matrix.groups if matrix.layout == "io" else 1}
        expected = nft.program_weights(weight.detach(), NVM, seed=5, stream=matrix.stream, draws=3, **stored)[0]
        holder, _, name = matrix.parameter.rpartition(".")
        assert torch.equal(getattr(chip.get_submodule(holder), name), expected)


def test_the_gradient_is_the_plain_modules_at_the_programmed_weights(kind):
    """Straight through: dL/dW is the plain module's dL/dW at W_p, and goes on into what W is made of."""
    name, plain, x = kind
    noisy = nft.convert(plain, NVM)
    layer, chip = layer_of(noisy), nft.program(noisy, seed=5, draw=3)
    call(chip, x).square().sum().backward()
    at_chip = []
    for matrix in layer.matrices():
        holder, _, key = matrix.parameter.rpartition(".")
        at_chip.append(getattr(chip.get_submodule(holder), key).grad)
    with nft.chips(noisy, seed=5, draws=3):
        call(noisy, x).square().sum().backward()
    originals = [p for p in noisy.parameters() if p.requires_grad]
    found = [p.grad for p in originals]
    noisy(*x)  # hooks write the weight anew
    if name == "spectral norm by hooks":  # torch's own hook keeps a graph of its own per forward
        assert all(gradient is not None and gradient.isfinite().all() for gradient in found)
        return
    expected = torch.autograd.grad(layer.master_weights(), originals, grad_outputs=at_chip, allow_unused=True)
    for gradient, wanted in zip(found, expected, strict=True):
        if wanted is not None:  # of a bias
            torch.testing.assert_close(gradient, wanted)


def test_restore_gives_the_module_back(kind):
    _, plain, x = kind
    noisy = nft.convert(plain, NVM)
    call(noisy, x)
    back = nft.restore(noisy)
    assert type(back).__name__ == type(plain).__name__
    assert vars(back).keys() == vars(plain).keys()
    assert list(back.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(back.state_dict().values(), plain.state_dict().values()))
    assert torch.equal(call(back, x), call(plain, x))


def test_two_chips_are_two_passes(kind):
    """In one pass where the module allows it; the rows are the chips' own."""
    _, plain, x = kind
    noisy = nft.convert(plain, NVM)
    for programmed in (False, True):
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("error")
            with nft.chips(noisy, seed=5, draws=[3, 8], programmed=programmed):
                found = call(noisy, x)
            parts = []
            for draw in (3, 8):
                with nft.chips(noisy, seed=5, draws=draw):
                    parts.append(call(noisy, x))
        torch.testing.assert_close(found, torch.cat(parts))


@pytest.mark.parametrize("module", [nn.LSTM(3, 3), nn.MultiheadAttention(3, 1)])
def test_a_batch_in_dim_1_is_never_mixed(module):
    """Inside a batch-first model, such a layer would split the sequence: the chips run one by one, said once."""

    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, x):  # [B, T, 3]
            x = x.transpose(0, 1)
            return first(self.inner(*[x] * (3 if isinstance(module, nn.MultiheadAttention) else 1))).transpose(0, 1)

    noisy, x = nft.convert(Inside().eval(), NVM), rand(4, 6, 3)
    with torch.no_grad():
        with nft.chips(noisy, seed=5, draws=[3, 8]), pytest.warns(UserWarning, match="one chip per pass"):
            found = noisy(x)
        with nft.chips(noisy, seed=5, draws=[3, 8]), warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(noisy(x), found)
        parts = []
        for draw in (3, 8):
            with nft.chips(noisy, seed=5, draws=draw):
                parts.append(noisy(x))
    assert torch.equal(found, torch.cat(parts))


def test_noise_can_be_off_or_of_another_sigma(kind):
    _, plain, x = kind
    noisy = nft.convert(plain, NVM)
    with nft.noise(noisy, enabled=False):
        quantized = nft.program(noisy)
        assert torch.equal(call(noisy, x), call(quantized, x))
    stronger = nft.convert(plain, NVM.replace(sigma=0.4))
    with nft.noise(noisy, sigma=0.4), nft.chips(noisy, seed=1, draws=2):
        found = call(noisy, x)
    with nft.chips(stronger, seed=1, draws=2):
        assert torch.equal(found, call(stronger, x))
    assert not torch.equal(call(noisy, x), call(noisy, x))  # a new chip per forward


# ---- copies and pickles


def test_copies_and_pickles_are_the_same_layer(kind):
    name, plain, x = kind
    noisy = nft.convert(plain, NVM).requires_grad_(False)
    if name in UNCOPIED_BY_TORCH:  # as the plain module: its hook's weight has a gradient until the next forward
        noisy(*x)
    others = [copy.deepcopy(noisy)]
    if name not in UNPICKLED_BY_TORCH:
        buffer = io.BytesIO()
        torch.save(noisy, buffer)
        buffer.seek(0)
        others += [torch.load(buffer, weights_only=False), pickle.loads(pickle.dumps(noisy))]
    else:
        with pytest.raises(RuntimeError, match="only supported through state_dict"):
            pickle.dumps(noisy)
    with nft.chips(noisy, seed=5, draws=3):
        expected = call(noisy, x)
    for other in others:
        assert type(other) is type(noisy) and nft.noisy_layers(other)
        with nft.chips(other, seed=5, draws=3):
            assert torch.equal(call(other, x), expected)
        other.state_dict()
        for parameter in other.parameters():
            parameter.data.zero_()
    with nft.chips(noisy, seed=5, draws=3):
        assert torch.equal(call(noisy, x), expected)


@pytest.mark.slow
def test_a_pickle_opens_in_another_process(tmp_path):
    model = nft.convert(nn.Sequential(nn.LSTM(3, 5, batch_first=True)), NVM)
    torch.save((model, rand(2, 4, 3)), tmp_path / "model.pt")
    with nft.chips(model, seed=1, draws=2):
        torch.save(model(rand(2, 4, 3))[0], tmp_path / "expected.pt")
    code = (
        "import sys, torch, nft_ext as nft\n"
        "model, x = torch.load(sys.argv[1] + '/model.pt', weights_only=False)\n"
        "with nft.chips(model, seed=1, draws=2):\n"
        "    assert torch.equal(model(x)[0], torch.load(sys.argv[1] + '/expected.pt'))\n"
        "assert isinstance(model[0], torch.nn.LSTM)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=ROOT)


def test_a_class_is_made_once():
    a, b = (nft.convert(nn.Conv1d(2, 2, 1), NVM) for _ in range(2))
    assert type(a) is type(b) and type(a).__name__ == "NoisyConv1d"


# ---- torch's machinery


@pytest.mark.parametrize("name", ["Conv1d", "registered, io", "attention", "LSTM", "weight norm"])
def test_compiled_models_compute_the_same(name):
    make, shapes = KINDS[name]
    torch.manual_seed(0)
    torch._dynamo.reset()
    noisy = nft.convert(nn.ModuleList([make()]).eval(), NVM)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = noisy[0]

        def forward(self, *x):
            return first(self.inner(*x))

    model, x = nft.convert(Model(), NVM), [rand(*shape) for shape in shapes]
    compiled = torch.compile(model, backend="aot_eager")
    for draws in (3, 4):
        results = []
        for run in (model, compiled):
            model.zero_grad()
            with nft.chips(model, seed=1, draws=draws):
                y = run(*x)
                y.square().sum().backward()
            results.append([y.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)
    assert not torch.equal(compiled(*x), compiled(*x))


def test_a_compiled_forward_may_write_to_its_module():
    torch._dynamo.reset()
    noisy = nft.convert(Counting(3, 4, 3), NVM)
    compiled, x = torch.compile(noisy, backend="eager"), rand(2, 3, 9)
    for run in (noisy, compiled, noisy):
        run(x)
    assert noisy.calls == 3


class Breaking(nn.Conv1d):
    """Its forward cannot be one graph."""

    def forward(self, x):
        y = super().forward(x)
        torch._dynamo.graph_break()
        self.last = y.detach().sum()
        return y + super().forward(x)


def test_graph_breaks_inside_a_forward():
    torch._dynamo.reset()
    noisy, x = nft.convert(Breaking(3, 4, 3), NVM), rand(2, 3, 9)
    compiled = torch.compile(noisy, backend="eager")
    with nft.chips(noisy, seed=1, draws=2):
        assert torch.equal(compiled(x), noisy(x))
        compiled(x + 1)
        written = noisy.last
        noisy(x + 1)
        assert torch.equal(noisy.last, written)


@pytest.mark.parametrize("strict", [True, False])
def test_export(strict):
    noisy, x = nft.convert(nn.Sequential(nn.Conv1d(3, 4, 3), nn.ConvTranspose1d(4, 2, 3)).eval(), NVM), rand(2, 3, 9)
    with torch.no_grad(), nft.chips(noisy, seed=1, draws=2):
        exported = torch.export.export(noisy, (x,), strict=strict)
        assert torch.equal(exported.module()(x), noisy(x))
    assert {*exported.state_dict} >= {*noisy.state_dict()}


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["Conv1d", "LSTM", "attention", "weight norm"])
def test_checkpointed_forwards_replay_their_chip(name, reentrant):
    make, shapes = KINDS[name]
    torch.manual_seed(0)
    noisy, x = nft.convert(make(), NVM), [rand(*shape).requires_grad_() for shape in shapes]
    gradients = []
    for saved in (False, True):
        noisy.zero_grad()
        with nft.chips(noisy, seed=1, draws=2):
            y = checkpoint(lambda *a: call(noisy, a), *x, use_reentrant=reentrant) if saved else call(noisy, x)
        y.square().sum().backward()
        gradients.append([p.grad.clone() for p in noisy.parameters()])
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b)


def test_autocast_computes_as_on_the_programmed_module():
    for name in ("Conv1d", "attention", "LSTM"):
        make, shapes = KINDS[name]
        torch.manual_seed(0)
        noisy, x = nft.convert(make().eval(), NVM), [rand(*shape) for shape in shapes]
        chip = nft.program(noisy, seed=1, draw=2).requires_grad_(False)
        for programmed in (False, True):
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                with nft.chips(noisy, seed=1, draws=2, programmed=programmed):
                    assert torch.equal(call(noisy, x), call(chip, x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types(dtype):
    noisy, x = nft.convert(nn.Conv1d(3, 4, 3).to(dtype), NVM), rand(2, 3, 9).to(dtype)
    with nft.chips(noisy, seed=1, draws=2):
        y = noisy(x)
    y.sum().backward()
    assert y.dtype == noisy.weight.grad.dtype == dtype
    with torch.no_grad():
        assert torch.equal(nft.program(noisy, seed=1, draw=2)(x), y)


def test_moves_keep_flat_weights_and_noise():
    noisy, x = nft.convert(nn.LSTM(3, 5, batch_first=True), NVM), rand(2, 4, 3)
    with nft.chips(noisy, seed=1, draws=2):
        expected = noisy(x)[0]
    noisy.double().float()
    with nft.chips(noisy, seed=1, draws=2):
        assert torch.equal(noisy(x)[0], expected)
    assert all(a is b for a, b in zip(noisy._flat_weights, noisy.parameters()))


def test_a_replica_of_data_parallel_runs_on_its_own_weights():
    noisy, x = nft.convert(nn.Conv1d(3, 4, 3), NVM), rand(2, 3, 9)
    replica = noisy._replicate_for_data_parallel()
    replica.weight, replica.bias = 2 * noisy.weight.detach(), noisy.bias.detach()
    assert replica.anchor is replica.weight  # its torch device decides where the noise state goes
    noisy.weight.data *= 2
    torch.manual_seed(1)
    expected = noisy(x)
    torch.manual_seed(1)
    assert torch.equal(replica(x), expected)


def test_an_optimizer_trains_the_module_under_noise():
    torch.manual_seed(0)
    noisy, x, y = nft.convert(nn.LSTM(3, 5, batch_first=True), nft.NVMDevice(sigma=0.05)), rand(8, 4, 3), rand(8, 4, 5)
    optimizer = torch.optim.Adam(noisy.parameters(), lr=0.02)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (noisy(x)[0] - 0.5 * y.tanh()).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


# ---- errors, reentry, threads


class Failing(nn.Conv1d):
    def forward(self, x):
        if len(x) == 1:
            raise KeyError("no")
        return super().forward(x)


def test_an_error_leaves_the_module_as_it_was():
    noisy = nft.convert(Failing(3, 4, 3), NVM)
    weight = noisy.weight
    for run in (noisy, torch.compile(noisy, backend="eager")):
        with pytest.raises(KeyError):
            run(rand(1, 3, 9))
        assert noisy.weight is weight and isinstance(weight, nn.Parameter)
        run(rand(2, 3, 9))


class Recursive(nn.Conv1d):
    """Calls itself, and code outside that reads its weight."""

    def forward(self, x, again=True, outside=None):
        y = super().forward(x)
        self.outside = None if outside is None else outside()
        return y + self(x, again=False) if again else y


def test_a_forward_that_calls_itself_is_on_one_chip():
    noisy, x = nft.convert(Recursive(3, 4, 3), NVM), rand(2, 3, 9)
    y = noisy(x, outside=lambda: noisy.weight)
    with nft.chips(noisy, seed=1, draws=2):
        assert torch.equal(noisy(x), 2 * noisy(x, again=False))
    assert y.shape == (2, 4, 7)


def test_the_parameter_stays_the_trained_weight_during_a_forward():
    noisy, seen = nft.convert(Recursive(3, 4, 3), NVM), []
    noisy(rand(2, 3, 9), again=False, outside=lambda: seen.append(noisy.weight))
    assert seen == [noisy._parameters["weight"]]


# ---- which matrices


def test_names_of_matrices_decide_their_streams():
    model = nn.Sequential(nn.LSTM(3, 5), nn.MultiheadAttention(8, 2), nn.Conv1d(2, 2, 1))
    layers = nft.noisy_layers(nft.convert(model, NVM))
    assert list(layers) == ["0", "1", "2"]
    names = [name for layer, found in layers.items() for name in found.matrices_by_name(layer)]
    assert names == ["0.weight_ih_l0", "0.weight_hh_l0", "1.in_proj_weight", "1.out_proj", "2"]
    assert layers["2"].stream == stream_of("2")
    assert layers["0"].stream == (stream_of("0.weight_ih_l0"), stream_of("0.weight_hh_l0"))


def test_models_converted_apart_and_joined_share_no_stream():
    joined = nn.Sequential(*(nft.convert(nn.Sequential(nn.LSTM(3, 3)), NVM) for _ in range(2)))
    assert joined[0][0].stream == joined[1][0].stream
    for _ in range(2):
        streams = [s for layer in nft.noisy_layers(joined).values() for s in layer.stream]
        assert len(set(streams)) == 4
    again = nft.noisy_layers(nft.convert(joined, NVM))
    assert len({s for layer in again.values() for s in layer.stream}) == 4


def test_embeddings_are_converted_only_on_request():
    model = nn.Sequential(nn.Embedding(5, 6), nn.Linear(6, 5))
    assert list(nft.noisy_layers(nft.convert(model, NVM))) == ["1"]
    assert list(nft.noisy_layers(nft.convert(model, NVM, include="*"))) == ["1"]
    for include in (nn.Embedding, "0"):
        noisy = nft.convert(model, NVM, include=include)
        assert list(nft.noisy_layers(noisy)) == ["0"]
        words = torch.arange(5)
        with torch.no_grad(), nft.chips(noisy[0], seed=1, draws=2):
            assert torch.equal(noisy[0](words), nft.program(noisy[0], seed=1, draw=2).weight)
    sparse = nn.Sequential(nn.Embedding(5, 6, sparse=True))
    with pytest.raises(ValueError, match="0: must be an Embedding without max_norm and sparse"):
        nft.convert(sparse, NVM, include="0")


def test_one_module_in_two_places_is_one_crossbar():
    shared = nn.Conv1d(3, 3, 1)
    noisy = nft.convert(nn.Sequential(shared, shared), NVM)
    assert noisy[0] is noisy[1] and len(nft.noisy_layers(noisy)) == 1


def test_a_weight_shared_with_a_digital_module_is_named():
    model = nn.ModuleDict({"words": nn.Embedding(5, 6), "out": Transposed()})
    model["out"].weight = model["words"].weight
    with pytest.warns(UserWarning, match=r"digital modules share .*: out \(with words \(Embedding\)\)$"):
        nft.convert(model, NVM)


class FlatCopies(nn.Module):
    """Keeps a copy of its weight, as a custom kernel does."""

    def __init__(self):
        super().__init__()
        self.weight, self.used = nn.Parameter(rand(4, 4)), nn.Parameter(rand(4, 4))
        self.flat = [self.weight.detach().clone()]

    def forward(self, x):
        return x @ self.used @ self.flat[0]


def test_a_weight_that_a_forward_never_reads_is_reported():
    nft.register_crossbar(FlatCopies, ["weight", "used"], layout="io")
    noisy = nft.convert(nn.Sequential(FlatCopies(), nn.Linear(4, 4)), NVM)
    with observed(noisy) as observer:
        noisy(rand(2, 4))
    found = observer.found()
    assert found.never_ran == ["0"] and found.share == pytest.approx(16 / 48)
    with pytest.warns(UserWarning, match=r"noisy layers did not run .*\(33.3 % of the noisy weights\): 0$"):
        nft.convert(nn.Sequential(FlatCopies(), nn.Linear(4, 4)), NVM, example=rand(2, 4))
    everything = nft.convert(
        nn.Sequential(
            nn.LSTM(4, 4),
        ),
        NVM,
    )
    with observed(everything) as observer:
        everything(rand(2, 1, 4))
    assert observer.found().never_ran == observer.found().read == observer.found().matrices == []


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.name = nn.Parameter(rand(4, 4)), "mine"

    def forward(self, x):
        return x @ self.weight


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (("Linear",), TypeError, "cls: must be a class derived from torch.nn.Module"),
        ((nn.Linear,), ValueError, "cls: must be a class of your own"),
        ((Transposed, 3), TypeError, "weight: must be the name of a parameter"),
        ((Transposed, []), ValueError, "weight: must be the name of a parameter"),
        ((Transposed, "a.b"), ValueError, "weight: must be the name of a parameter"),
        ((Transposed, "weight", "xy"), ValueError, "layout: must be one of"),
    ],
)
def test_bad_registrations(arguments, error, message):
    with pytest.raises(error, match=message):
        nft.register_crossbar(*arguments)


def test_a_registered_class_must_have_its_parameter_and_no_name_of_ours():
    class Without(nn.Module):
        def forward(self, x):
            return x @ self.matrix

    nft.register_crossbar(Without, "matrix")
    with pytest.raises(ValueError, match="0.matrix: must be a parameter"):
        nft.convert(nn.Sequential(Without()), NVM)
    nft.register_crossbar(Named, layout="io")
    with pytest.raises(ValueError, match="0: must have no attribute that a noisy layer needs .*; got name"):
        nft.convert(nn.Sequential(Named()), NVM)

    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(rand(4, 4))

        def forward(self, x):
            return x @ self.weight

    nft.register_crossbar(Flat, layout="eio")
    with pytest.raises(ValueError, match="0.weight: must have three dimensions for the layout 'eio'"):
        nft.convert(nn.Sequential(Flat()), NVM)


# ---- evaluation, training methods, fuse


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(28, 2))


def test_monte_carlo_is_the_mean_over_programmed_models():
    noisy, x, y = nft.convert(small(), NVM), rand(40, 3, 9), torch.arange(40) % 2
    report = nft.monte_carlo(noisy, (x, y), runs=6, progress=False)
    expected = [(nft.program(noisy, draw=d).eval()(x).argmax(1) == y).float().mean().item() for d in range(6)]
    assert report.accuracy.per_run.tolist() == pytest.approx(expected)
    assert nft.monte_carlo(noisy, (x, y), runs=6, chips_per_pass=1, progress=False).accuracy.per_run.tolist() == (
        report.accuracy.per_run.tolist()
    )


METHODS = {
    "vanilla": {},
    "noise": {"sigma": 0.1},
    "control": {"sigma": 0.1},
    "ovf": {"sigma": 0.1, "beta": 1e-3},
    "irs": {"sigma": 0.1, "beta": 1e-3, "points": ["0", "2"], "input_shape": (3, 6, 6)},
    "censored": {"sigma": 0.1},
    "correctnet": {"base": {"name": "noise", "sigma": 0.1}},
}


@pytest.mark.parametrize("name", METHODS)
def test_training_methods_train_such_layers(name):
    net = nn.Sequential(Standardized(3, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 4, 2), nn.Flatten(), nn.Linear(100, 2))
    method, x = nft.methods.build(name, **METHODS[name]), rand(6, 3, 6, 6)
    model = method.prepare(net, NVM)
    method.loss(model, x, torch.arange(6) % 2).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    plain = method.finish(model)
    assert type(plain[0]) is Standardized and torch.equal(plain(x), plain(x)) and plain(x).shape == (6, 2)


def test_fuse_leaves_them_alone():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.ConvTranspose2d(4, 2, 3)).eval()
    noisy, x = nft.convert(model, NVM), rand(2, 3, 6, 6)
    fused = nft.fuse(noisy)
    with torch.no_grad(), nft.chips(noisy, seed=1, draws=[2, 3]), nft.chips(fused, seed=1, draws=[2, 3]):
        torch.testing.assert_close(fused(x), noisy(x))


def test_a_transformer_without_the_fast_path():
    plain = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0).eval()
    noisy, x = nft.convert(plain, NVM), rand(4, 5, 8)
    assert list(nft.noisy_layers(noisy)) == ["self_attn", "linear1", "linear2"]
    chip = nft.program(noisy, seed=1, draw=2)
    with torch.no_grad():
        with nft.chips(noisy, seed=1, draws=2):
            torch.testing.assert_close(noisy(x), chip(x))
        with nft.chips(noisy, seed=1, draws=[2, 3]):
            torch.testing.assert_close(noisy(x)[:4], chip(x))
        assert torch.equal(nft.restore(noisy)(x), plain(x))


def test_parametrized_after_the_conversion():
    noisy, x = nft.convert(nn.Sequential(nn.Conv1d(3, 4, 3)), NVM), rand(2, 3, 9)
    parametrize.register_parametrization(noisy[0], "weight", nn.Tanh())
    weight = noisy[0].weight
    with nft.chips(noisy, seed=1, draws=2):
        found = noisy(x)
        compiled = torch.compile(noisy, backend="eager")(x)
    expected = nft.program_weights(weight.detach(), NVM, seed=1, stream=noisy[0].stream, draws=2)[0]
    expected = nn.functional.conv1d(x, expected, noisy[0].bias)
    assert torch.equal(found, expected) and torch.equal(compiled, expected)
    assert parametrize.is_parametrized(nft.restore(noisy)[0])


def test_a_journal_of_such_a_model_continues_and_tells_classes_apart(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(Counting(3, 4, 3), nn.Flatten(), nn.Linear(28, 2))
    data, resume = (rand(20, 3, 9), torch.arange(20) % 2), tmp_path / "runs.jsonl"
    options = {"progress": False, "resume": resume}
    first = nft.monte_carlo(nft.convert(net, NVM), data, runs=3, **options)
    more = nft.monte_carlo(nft.convert(net, NVM), data, runs=5, **options)
    assert more.accuracy.per_run[:3].tolist() == first.accuracy.per_run.tolist()
    other = nn.Sequential(nn.Conv1d(3, 4, 3), nn.Flatten(), nn.Linear(28, 2))
    other.load_state_dict(net.state_dict())
    with pytest.raises(ValueError, match="resume: must be of the same configuration.*layer 0"):
        nft.monte_carlo(nft.convert(other, NVM), data, runs=5, **options)


# ---- layers whose forward reads the weight of a Linear below them


def test_a_child_that_was_wrapped_after_the_conversion_is_refused():
    """The forward of the wrapper would call its own Linear, which has no noise."""
    model = nft.convert(nn.ModuleDict({"attend": nn.MultiheadAttention(8, 2, batch_first=True)}), NVM)
    attention = model["attend"]
    attention.out_proj = nn.Sequential(attention.out_proj)
    attention.out_proj.weight = attention.out_proj[0].weight
    x = rand(2, 3, 8)
    with pytest.raises(
        ValueError, match=r"attend.out_proj: must be the Linear whose weight the layer reads.*Sequential"
    ):
        attention(x, x, x)


@pytest.mark.parametrize("scale", ["layer", "output"])
def test_a_journal_tells_layouts_apart_where_they_decide_the_steps(scale, tmp_path):
    class Square(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(rand(6, 6))

        def forward(self, x):
            return x @ self.weight

    data, models = (rand(8, 6), torch.arange(8) % 6), {}
    for layout in ("oi", "io"):
        nft.register_crossbar(Square, layout=layout)
        models[layout] = nft.convert(Square(), NVM.replace(scale=scale))
    first = nft.monte_carlo(models["oi"], data, runs=3, progress=False, resume=tmp_path / "chips")
    if scale == "output":
        with pytest.raises(ValueError, match="differs in layouts"):
            nft.monte_carlo(models["io"], data, runs=3, progress=False, resume=tmp_path / "chips")
    else:  # one step: the same chips
        again = nft.monte_carlo(models["io"], data, runs=3, progress=False, resume=tmp_path / "chips")
        assert again.accuracy.per_run.tolist() == first.accuracy.per_run.tolist()


class EvaAttention(nn.Module):
    """As timm's: it reads qkv's weight, and calls proj."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(4, 12, bias=False), nn.Linear(4, 4)

    def forward(self, x):
        q, k, v = nn.functional.linear(x, self.qkv.weight).chunk(3, -1)
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v))


def test_an_attention_that_reads_its_linears_puts_both_on_the_crossbars_of_their_names(monkeypatch):
    monkeypatch.setattr(EvaAttention, "__module__", "timm.models.eva")
    x = rand(4, 5, 4)
    model = nft.convert(nn.ModuleDict({"attn": EvaAttention()}), NVM)
    assert list(nft.noisy_layers(model)) == ["attn"] and nft.coverage(model).share == 1.0
    streams = {name: m.stream for name, m in model["attn"].matrices_by_name("attn").items()}
    assert streams == {name: stream_of(name) for name in ("attn.qkv", "attn.proj")}
    with torch.no_grad(), nft.chips(model, seed=3, draws=[5]):
        assert torch.equal(model["attn"](x), nft.program(model, seed=3, draw=5)["attn"](x))
