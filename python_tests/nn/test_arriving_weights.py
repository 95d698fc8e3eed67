"""Weights that come later: models made on the meta device, and offloaded ones, whose weights come at each forward."""

import pytest
import torch
from torch import nn

import nft_ext as nft

NVM = nft.NVMDevice(sigma=0.1)
X = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
CONTEXTS = {
    "one chip": {},
    "several chips": {"draws": range(3)},
    "programmed": {"programmed": True},
    "several programmed chips": {"draws": range(3), "programmed": True},
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Sequential(nn.Linear(5, 5)), nn.Linear(5, 3)).eval()


def empty():
    with torch.device("meta"):
        return network()


def on_chips(model, **options):
    with torch.no_grad(), nft.chips(model, seed=3, **options):
        return model(X)


# ---- the meta device


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("options", CONTEXTS.values(), ids=CONTEXTS)
def test_a_model_converted_on_meta_has_the_chips_of_the_loaded_one(options, inplace):
    expected = on_chips(nft.convert(network(), NVM), **options)
    assigned = nft.convert(empty(), NVM, inplace=inplace)
    assigned.load_state_dict(network().state_dict(), assign=True)
    emptied = nft.convert(empty(), NVM, inplace=inplace).to_empty(device="cpu")
    emptied.load_state_dict(network().state_dict())
    for model in (assigned, emptied):
        assert torch.equal(on_chips(model, **options), expected)


@pytest.mark.parametrize("options", CONTEXTS.values(), ids=CONTEXTS)
def test_weights_may_arrive_inside_a_context(options):
    model = nft.convert(empty(), NVM)
    with torch.no_grad(), nft.chips(model, seed=3, **options):
        model.load_state_dict(network().state_dict(), assign=True)
        found = model(X)
    # Not programmed ahead: there were no values.
    assert torch.equal(found, on_chips(nft.convert(network(), NVM), draws=options.get("draws", 0)))


def test_values_that_are_not_finite_are_refused_when_they_are_used():
    state = network().state_dict()
    state["0.weight"][1, 2] = float("nan")
    model = nft.convert(empty(), NVM)
    model.load_state_dict(state, assign=True)
    with pytest.raises(RuntimeError, match="weight: must be finite"):
        on_chips(model)


def test_without_values_a_model_gives_shapes():
    model = nft.convert(empty(), NVM)
    x = torch.empty(4, 6, device="meta")
    for key in (nft.noise_key(3, range(2)), nft.noise_key(3, range(2), device="meta")):
        with nft.chips(model, key=key):
            y = model(x)
            assert y.is_meta and y.shape == (8, 3)


def test_a_key_without_values_is_refused_where_weights_have_some():
    model = nft.convert(empty(), NVM)
    with nft.chips(model, key=nft.noise_key(3, device="meta")):
        model.load_state_dict(network().state_dict(), assign=True)
        with pytest.raises(RuntimeError, match=r"0\.weight: must be on the meta device too for a key on it"):
            model(X)
    with (
        pytest.raises(ValueError, match="key: must be on the weight's torch device cpu"),
        nft.chips(model, key=nft.noise_key(3, device="meta")),
    ):
        pass


# ---- offloading


def offloaded(model):
    """`model` with weights that are on the CPU only during the forwards of their layers."""
    for layer in list(model.modules()):
        if isinstance(layer, nn.Linear):
            real = {name: p for name, p in layer._parameters.items() if p is not None}

            def bring(layer, args, real=real):
                layer._parameters.update(real)

            def take(layer, args, result):
                for name, p in list(layer._parameters.items()):
                    layer._parameters[name] = nn.Parameter(p.to("meta"), requires_grad=p.requires_grad)

            layer.register_forward_pre_hook(bring)
            layer.register_forward_hook(take)
            take(layer, None, None)
    return model


@pytest.mark.parametrize("options", CONTEXTS.values(), ids=CONTEXTS)
def test_an_offloaded_model_runs_on_its_chips(options):
    model = offloaded(nft.convert(network(), NVM))
    expected = on_chips(nft.convert(network(), NVM), draws=options.get("draws", 0))
    for _ in range(2):
        assert torch.equal(on_chips(model, **options), expected)
    with pytest.raises(ValueError, match="model: must have weights with values"):
        nft.monte_carlo(model, (X, torch.arange(4) % 3), runs=2, progress=False)


def test_noise_contexts_reach_an_offloaded_model():
    outcomes = []
    for model in (nft.convert(network(), NVM), offloaded(nft.convert(network(), NVM))):
        with nft.noise(model, sigma=0.3), nft.chips(model, seed=5):
            strong = model(X)
        with nft.noise(model, enabled=False):
            quiet = model(X)
        torch.manual_seed(7)
        outcomes.append((strong, quiet, model(X)))
    for a, b in zip(*outcomes):
        assert torch.equal(a, b)


def test_accelerate_offloads_a_converted_model():
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    expected = {name: on_chips(nft.convert(network(), NVM), draws=o.get("draws", 0)) for name, o in CONTEXTS.items()}
    model = accelerate.cpu_offload(nft.convert(network(), NVM), execution_device=torch.device("cpu"))
    assert all(p.is_meta for p in model.parameters())
    for name, options in CONTEXTS.items():
        assert torch.equal(on_chips(model, **options), expected[name]), name
    for task in (nft.restore, nft.program, lambda m: nft.restore(m, inplace=True)):
        with pytest.raises(ValueError, match=r"0\.forward: .*remove_hook_from_submodules"):
            task(model)


def test_accelerate_before_convert_is_refused_by_name():
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    model = accelerate.cpu_offload(network(), execution_device=torch.device("cpu"))
    for inplace in (False, True):
        with pytest.raises(ValueError, match=r"0\.forward: .*remove_hook_from_submodules\), convert, then add them"):
            nft.convert(model, NVM, inplace=inplace)
