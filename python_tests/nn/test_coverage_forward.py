"""nft.coverage with an example: what a forward really multiplies, and how many multiply-accumulates that takes."""

import random
from collections import UserDict
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

import nft_ext as nft
from nft_ext.nn.coverage.operators import PRODUCTS

NVM = nft.NVMDevice(sigma=0.2)
pytestmark = pytest.mark.filterwarnings("ignore:convert.*:UserWarning")


class Module(nn.Module):
    """Parameters and layers by name, and a forward given as a function of the module and its inputs."""

    def __init__(self, run, **held):
        super().__init__()
        self.run = run
        for name, value in held.items():
            setattr(self, name, nn.Parameter(value) if isinstance(value, torch.Tensor) else value)

    def forward(self, *inputs):
        return self.run(self, *inputs)


def macs(model, *inputs):
    return {row.name: row.macs for row in nft.coverage(model, inputs).rows}


# ---- multiply-accumulates, against arithmetic by hand


@pytest.mark.parametrize(
    "layer, shape, expected",
    [
        (nn.Linear(5, 7), (3, 4, 5), 3 * 4 * 5 * 7),
        (nn.Linear(5, 7, bias=False), (5,), 5 * 7),
        (nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2), (2, 4, 9, 9), 2 * 8 * 5 * 5 * (2 * 3 * 3)),
        (nn.Conv2d(4, 8, (3, 1), dilation=2), (4, 9, 9), 8 * 5 * 9 * (4 * 3)),
        (nn.Conv1d(4, 6, 3), (2, 4, 10), 2 * 6 * 8 * 4 * 3),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (2, 4, 5, 5), 2 * 5 * 5 * 4 * 3 * 9),
    ],
    ids=["linear", "vector", "conv2d", "conv2d one image", "conv1d", "transposed"],
)
def test_one_layer(layer, shape, expected):
    assert macs(layer, torch.randn(shape)) == {"weight": expected}
    if type(layer) in (nn.Linear, nn.Conv2d):
        noisy = nft.coverage(nft.convert(layer, NVM), torch.randn(shape))
        assert [(row.macs, row.noisy_macs, row.ran) for row in noisy.rows] == [(expected, expected, True)]


@pytest.mark.parametrize("kind, gates", [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_recurrent_layers_multiply_every_matrix_once_per_step(kind, gates):
    layer, steps, batch = kind(5, 6, num_layers=2, bidirectional=True), 7, 3
    sizes = {"weight_ih_l0": 5, "weight_hh_l0": 6, "weight_ih_l1": 12, "weight_hh_l1": 6}
    expected = {f"{name}{way}": steps * batch * gates * 6 * n for name, n in sizes.items() for way in ("", "_reverse")}
    assert macs(layer, torch.randn(steps, batch, 5)) == expected


def test_the_recurrent_operator_of_cudnn_counts_like_that_of_the_cpu():
    """By its arguments: input, weights, ... on torch's meta device, because the operator exists on CUDA only."""
    x, weights = torch.empty(7, 3, 5), [torch.empty(24, 5), torch.empty(24, 6), torch.empty(24)]
    operands = PRODUCTS["aten::_cudnn_rnn"]((x, weights, 4), None)
    assert [(m, stands) for _, m, stands in operands] == [(0, False), (21 * 24 * 5, True), (21 * 24 * 6, True)]


def test_attention_multiplies_its_packed_matrix_in_parts():
    layer, batch, length = nn.MultiheadAttention(8, 2, batch_first=True), 3, 5
    for query in (torch.randn(batch, length, 8), torch.randn(batch, 2, 8)):
        keys = torch.randn(batch, length, 8)
        rows = batch * (query.shape[1] + 2 * length)  # one third of the matrix each
        assert macs(layer, query, keys, keys) == {
            "in_proj_weight": rows * 8 * 8,
            "out_proj.weight": batch * query.shape[1] * 64,
        }


def test_bilinear_layers_and_batched_products():
    assert macs(nn.Bilinear(3, 4, 5), torch.randn(7, 3), torch.randn(7, 4)) == {"weight": 7 * 3 * 4 * 5}
    experts = Module(lambda m, x: torch.einsum("ebi,eio->ebo", x, m.w), w=torch.randn(4, 6, 5))
    assert macs(experts, torch.randn(4, 3, 6)) == {"w": 4 * 3 * 6 * 5}


def test_a_layer_that_is_called_twice_counts_twice():
    layer = nn.Linear(4, 4)
    assert macs(nn.Sequential(layer, nn.Tanh(), layer), torch.randn(3, 4)) == {"0.weight": 2 * 3 * 16}


def test_the_share_of_multiply_accumulates_is_another_than_that_of_weights():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 10))
    noisy = nft.convert(model, NVM, include=nn.Conv2d)
    found = nft.coverage(noisy, torch.randn(2, 1, 8, 8))
    assert found.share == 36 / (36 + 1440) and found.mac_share == (36 * 36) / (36 * 36 + 1440)
    assert [row.weight_share for row in found.rows] == [found.share, 1 - found.share]
    assert nft.coverage(noisy).mac_share is None


def test_the_operators_are_seen_in_16_bit_and_under_autocast_too():
    model = nft.convert(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2)), NVM)
    with torch.autocast("cpu", torch.bfloat16):
        assert macs(model, torch.randn(3, 6)) == {"0.weight": 72, "1.weight": 24}
    assert macs(model.bfloat16(), torch.randn(3, 6, dtype=torch.bfloat16)) == {"0.weight": 72, "1.weight": 24}


def test_programmed_weights_are_followed_to_their_layers():
    noisy = nft.convert(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2)), NVM)
    x = torch.randn(3, 6)
    with torch.no_grad(), nft.chips(noisy, draws=0, programmed=True):
        found = nft.coverage(noisy, x)
    assert [row.ran for row in found.rows] == [False, False]  # programmed before: nothing shows whose products they are
    from nft_ext.nn.coverage.account import coverage_of
    from nft_ext.nn.coverage.products import products_of

    with torch.no_grad(), products_of(noisy) as products, nft.chips(noisy, draws=0, programmed=True):
        noisy(x)
    found = coverage_of(noisy, products)
    assert [(row.macs, row.noisy_macs) for row in found.rows] == [(72, 72), (24, 24)]


# ---- what is a matrix


def product(m, x):
    return x @ m.w


READS = {
    "matmul": product,
    "transposed": lambda m, x: x @ m.w.T,
    "in 16 bit": lambda m, x: x.bfloat16() @ m.w.bfloat16(),
    "in parts": lambda m, x: torch.cat([x @ part for part in m.w.chunk(2, 1)], 1),
    "masked": lambda m, x: x @ (m.w * torch.ones(6, 6).tril()),
    "made of itself": lambda m, x: x @ torch.linalg.matrix_exp(m.w - m.w.T),
    "einsum": lambda m, x: torch.einsum("bi,io->bo", x, m.w),
    "as a kernel": lambda m, x: functional.conv1d(x[None], m.w[:, :, None].expand(6, 6, 1).contiguous()[:, :4]),
    "modulated kernel": lambda m, x: functional.conv1d(x[None], (m.w * x.mean())[:, :4, None]),
    "its own rows": lambda m, x: torch.bmm(x[:, None], m.w[x.sum(1).long().abs() % 6][:, :, None].expand(-1, -1, 2)),
}


@pytest.mark.parametrize("run", READS.values(), ids=READS)
def test_a_parameter_of_an_unknown_class_that_is_multiplied_counts(run):
    (row,) = nft.coverage(Module(run, w=torch.randn(6, 6)), torch.randn(4, 6)).rows
    assert (row.counted, row.judged, row.place, row.reason) == (True, "forward", "digital", "unknown class")
    assert row.macs > 0


OTHERS = {
    "added": (lambda m, x: x + m.w[:4], "added or scaled by element"),
    "scaled": (lambda m, x: x * m.w[:4], "added or scaled by element"),
    "joined": (lambda m, x: torch.cat([m.w, x]), "added or scaled by element"),
    "looked up": (lambda m, x: functional.embedding(x.long().abs() % 6, m.w), "embedding"),
    "learned queries": (lambda m, x: m.layer(m.w.repeat(2, 1)).sum() + x, "learned input of a layer"),
}


@pytest.mark.parametrize("run, reason", OTHERS.values(), ids=OTHERS)
def test_a_parameter_that_is_not_multiplied_as_a_matrix_is_listed_only(run, reason):
    model = Module(run, w=torch.randn(6, 6), layer=nn.Linear(6, 6))
    assert nft.coverage(model).rows[0].counted  # by shape and name
    row = nft.coverage(model, torch.randn(4, 6)).rows[0]
    assert (row.counted, row.judged, row.reason, row.macs) == (False, "forward", reason, 0)


@pytest.mark.parametrize(
    "wrap",
    [lambda x: {"x": [x]}, lambda x: UserDict(x=x), lambda x: SimpleNamespace(x=x)],
    ids=["nested", "mapping", "object"],
)
def test_inputs_may_be_in_containers_and_objects(wrap):
    def run(m, batch):
        x = batch.x if isinstance(batch, SimpleNamespace) else batch["x"]
        return (x[0] if isinstance(x, list) else x) @ m.w

    assert macs(Module(run, w=torch.randn(6, 5)), wrap(torch.randn(4, 6))) == {"w": 4 * 30}


def test_a_table_that_is_also_multiplied_counts():
    model = Module(lambda m, i: m.table(i) @ m.table.weight.T, table=nn.Embedding(5, 6))
    (row,) = nft.coverage(model, torch.arange(4)).rows
    assert (row.counted, row.macs, row.reason) == (True, 4 * 5 * 6, "embedding, also multiplied as a matrix")


def test_products_that_make_a_weight_take_no_multiply_accumulate():
    normed = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6))
    assert macs(normed, torch.randn(4, 6)) == {"parametrizations.weight.original": 4 * 36}
    power = Module(
        lambda m, x: functional.linear(x, m.layer.weight / torch.dot(m.u, torch.mv(m.layer.weight, m.u))),
        layer=nn.Linear(6, 6),
    )
    power.register_buffer("u", torch.ones(6))
    assert macs(power, torch.randn(4, 6)) == {"layer.weight": 4 * 36}


@pytest.mark.parametrize("linear", [False, True], ids=["parameters", "layers"])
def test_a_low_rank_update_counts_for_the_matrix_that_it_changes(linear):
    """All three multiply; what the sum takes is counted once, for the largest."""

    def run(m, x):
        return functional.linear(x, m.w + (m.up.weight @ m.down.weight if linear else m.up @ m.down))

    down, up = nn.Linear(6, 2, bias=False), nn.Linear(2, 6, bias=False)
    held = {"down": down, "up": up} if linear else {"down": torch.randn(2, 6), "up": torch.randn(6, 2)}
    found = nft.coverage(Module(run, w=torch.randn(6, 6), **held), torch.randn(4, 6))
    assert [(row.counted, row.macs) for row in found.rows] == [(True, 4 * 36), (True, 0), (True, 0)]


def test_a_first_step_from_zeros_counts_like_the_others():
    model = Module(lambda m, x: m.layer(torch.zeros_like(x)) + m.layer(x), layer=nn.Linear(6, 6))
    assert macs(model, torch.randn(4, 6)) == {"layer.weight": 2 * 4 * 36}


def test_experts_that_were_not_chosen_do_not_multiply():
    def run(m, x):
        return torch.stack([functional.linear(row, m.w[int(i)]) for row, i in zip(x, m.gate(x).argmax(1))])

    model = Module(run, w=torch.randn(4, 5, 6), gate=nn.Linear(6, 4))
    assert macs(model, torch.randn(3, 6)) == {"w": 3 * 30, "gate.weight": 3 * 24}


def test_a_matrix_that_no_forward_reads_counts_by_rule():
    found = nft.coverage(Module(lambda m, x: m.layer(x), layer=nn.Linear(6, 2), w=torch.randn(6, 6)), torch.randn(4, 6))
    row = next(row for row in found.rows if row.name == "w")
    assert (row.counted, row.macs, row.judged) == (True, 0, "shape and name") and "1 not used in the example" in str(
        found
    )


# ---- whether a layer ran


def read_past(m, x):
    return m.called(functional.linear(x, m.read.weight))


@pytest.mark.parametrize("convert", [False, True], ids=["plain", "noisy"])
def test_a_weight_that_is_read_past_its_layer_is_digital(convert):
    model = Module(read_past, read=nn.Linear(6, 6), called=nn.Linear(6, 3))
    found = nft.coverage(nft.convert(model, NVM) if convert else model, torch.randn(4, 6))
    assert [(row.name, row.reason) for row in found.digital] == [
        ("read.weight", "its layer is not called: the weight is read past it")
    ]
    assert [row.ran for row in found.rows] == [False, True] and found.share == found.mac_share == 18 / 54
    assert nft.coverage(model).share == 1  # nothing shows it without an example


def test_a_layer_that_is_called_and_read_is_split():
    model = Module(lambda m, x: m.layer(x) @ m.layer.weight, layer=nn.Linear(6, 6))
    found = nft.coverage(nft.convert(model, NVM), torch.randn(4, 6))
    assert (found.share, found.mac_share) == (1, 0.5)
    assert found.rows[0].reason == "also read past its layer, without noise"


def test_a_layer_that_no_forward_calls_did_not_run():
    found = nft.coverage(nft.convert(Module(lambda m, x: x, layer=nn.Linear(6, 6)), NVM), torch.randn(4, 6))
    assert (found.rows[0].ran, found.rows[0].reason) == (False, "did not run in the example")


def test_a_sharded_or_quantized_matrix_leaves_the_share_of_products_unknown():
    class Quantized(nn.Module):
        weight = torch.ones(6, 6)

        def forward(self, x):
            return x

    Quantized.__module__ = "torch.ao.nn.quantized.dynamic.modules.linear"
    found = nft.coverage(nn.Sequential(Quantized(), nn.Linear(6, 6)), torch.randn(2, 6))
    assert (found.share, found.mac_share, found.rows[0].macs) == (0.5, None, None)


@pytest.mark.parametrize("kind", ["tensor", "tuple", "mapping"])
def test_an_example_leaves_the_model_as_it_was(kind):
    model = nft.convert(nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout()), NVM)
    x = torch.randn(4, 6)
    example = {"tensor": x, "tuple": (x,), "mapping": {"input": x}}[kind]
    before = torch.get_rng_state(), random.getstate(), {k: v.clone() for k, v in model.state_dict().items()}
    fast = torch.backends.mha.get_fastpath_enabled()
    assert nft.coverage(model, example).mac_share == 1
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before[2].items())
    assert model.training and torch.backends.mha.get_fastpath_enabled() is fast
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_an_example_that_the_model_does_not_accept_is_an_error():
    with pytest.raises(ValueError, match="example: must be an input that the model accepts; got RuntimeError"):
        nft.coverage(nn.Linear(6, 6), torch.randn(4, 5))
