"""Checkpoints: what is saved comes back, and a bad file is named."""

import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import nft_ext as nft
from nft_ext import methods
from nft_ext.training import checkpoint

META = {"model": {"name": "vgg8", "num_classes": 3, "in_channels": 1, "width": 0.125}, "note": "sigma 0.1"}


@pytest.fixture
def vgg8():
    torch.manual_seed(0)
    return nft.models.vgg8(num_classes=3, width=0.125)


@pytest.fixture
def path(tmp_path, vgg8):
    checkpoint.save(tmp_path / "net.safetensors", vgg8, META)
    return tmp_path / "net.safetensors"


def test_weights_and_metadata_come_back(path, vgg8):
    state, meta = checkpoint.load(path)
    assert meta == META
    assert set(state) == set(vgg8.state_dict())
    for key, value in vgg8.state_dict().items():
        assert torch.equal(state[key], value) and state[key].dtype == value.dtype


def test_the_model_is_rebuilt(path, vgg8):
    model, meta = checkpoint.load_model(path)
    x = torch.randn(2, 1, 32, 32)
    assert torch.equal(model(x), vgg8.eval()(x))
    assert meta["note"] == "sigma 0.1"


def test_a_checkpoint_names_the_start_unless_it_is_the_usual_one(vgg8):
    """So older checkpoints, states and their descriptions stay as they are."""
    assert checkpoint.describe_model(vgg8) == META["model"]
    published = nft.models.vgg8(num_classes=3, width=0.125, init="published")
    description = checkpoint.describe_model(published)
    assert description == META["model"] | {"init": "published"}
    assert nft.models.build(**description).init == "published"


def test_any_safetensors_reader_can_read_it(path, vgg8):
    with safe_open(path, framework="np") as file:
        assert json.loads(file.metadata()["meta"]) == META
        assert (file.get_tensor("fc2.bias") == vgg8.fc2.bias.detach().numpy()).all()


def test_fit_writes_a_checkpoint_that_can_be_rebuilt(tmp_path, vgg8):
    path = tmp_path / "best.safetensors"
    images, labels = torch.randn(8, 1, 32, 32), torch.arange(8) % 3
    nvm = nft.NVMDevice(weight_bits=6, device_bits=3)
    history = nft.fit(
        vgg8,
        methods.OVF(sigma=0.2, beta=1e-2),
        (images, labels),
        (images, labels),
        epochs=2,
        batch_size=4,
        seed=7,
        nvm=nvm,
        progress=False,
        checkpoint=path,
    )
    model, meta = checkpoint.load_model(path)
    assert all(torch.equal(v, history.model.state_dict()[k]) for k, v in model.state_dict().items())
    assert methods.build(**meta["method"]) == methods.OVF(sigma=0.2, beta=1e-2)
    assert (meta["device"]["weight_bits"], meta["device"]["sigma"]) == (6, 0.2)
    assert (meta["recipe"]["epochs"], meta["seed"], meta["epoch"]) == (2, 7, history.best_epoch)
    assert meta["validation"] == history.best
    assert set(meta["versions"]) == {"nft_ext", "torch", "python"}
    assert "dataset" not in meta  # two tensors have no name


@pytest.mark.parametrize("meta, expected", [(None, "digits"), ({"dataset": "mine"}, "mine")])
def test_a_checkpoint_names_the_data_set_that_has_a_name(tmp_path, meta, expected):
    few = nft.data.load("digits")[0].subset(range(8))
    nft.fit(
        nft.models.vgg8(width=0.125),
        methods.Vanilla(),
        few,
        few,
        epochs=1,
        batch_size=4,
        progress=False,
        checkpoint=tmp_path / "c.safetensors",
        meta=meta,
    )
    assert checkpoint.load(tmp_path / "c.safetensors")[1]["dataset"] == expected


def test_tied_weights_views_and_scalars_are_saved(tmp_path):
    weight = torch.randn(3, 4)
    state = {"one": weight, "tied": weight, "view": weight.t(), "count": torch.tensor(3), "half": weight.bfloat16()}
    checkpoint.save(tmp_path / "s.safetensors", state, {})
    loaded, _ = checkpoint.load(tmp_path / "s.safetensors")
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


def test_a_failed_save_leaves_the_old_file_and_no_litter(path, vgg8, monkeypatch):
    old = path.read_bytes()

    def disk_full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(path, {"w": torch.zeros(3)}, {})
    assert path.read_bytes() == old
    assert list(path.parent.iterdir()) == [path]


def test_a_missing_file_is_named(tmp_path):
    message = "path: must name a checkpoint written by nft_ext.*no such file; got .*gone"
    with pytest.raises(FileNotFoundError, match=message):
        checkpoint.load(tmp_path / "gone.safetensors")


@pytest.mark.parametrize("keep", [0, 5, 100, -1000, -1])
def test_a_short_file_is_named(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    message = r"path: must name a checkpoint.*short or corrupt.*net.safetensors, \d+ bytes"
    with pytest.raises(ValueError, match=message):
        checkpoint.load(path)


@pytest.mark.parametrize("where", ["header", "metadata", "weights"])
def test_a_flipped_bit_is_found(path, where):
    content = bytearray(path.read_bytes())
    content[{"header": 3, "metadata": content.index(b"0.125") + 2, "weights": len(content) - 10}[where]] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="corrupt"):
        checkpoint.load(path)


def test_something_else_is_no_checkpoint(tmp_path):
    save_file({"w": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="this safetensors file is not one"):
        checkpoint.load(tmp_path / "other.safetensors")
    torch.save({"w": torch.zeros(3)}, tmp_path / "pickled.pt")
    with pytest.raises(ValueError, match="short or corrupt"):
        checkpoint.load(tmp_path / "pickled.pt")


def test_a_checkpoint_that_describes_no_model_gives_bare_weights_only(tmp_path, vgg8):
    checkpoint.save(tmp_path / "net.safetensors", vgg8, {})
    with pytest.raises(ValueError, match="must describe its model"):
        checkpoint.load_model(tmp_path / "net.safetensors")


def test_weights_of_another_model_are_refused(tmp_path, vgg8):
    checkpoint.save(tmp_path / "net.safetensors", vgg8, META | {"model": META["model"] | {"num_classes": 4}})
    with pytest.raises(ValueError, match="must hold the weights of the model it describes"):
        checkpoint.load_model(tmp_path / "net.safetensors")


def test_bad_arguments_of_save(tmp_path, vgg8):
    with pytest.raises(ValueError, match="meta: must be JSON-able"):
        checkpoint.save(tmp_path / "net.safetensors", vgg8, {"x": object()})
    with pytest.raises(ValueError, match="'x'; got int"):
        checkpoint.save(tmp_path / "net.safetensors", {"x": 3}, {})
    with pytest.raises(FileNotFoundError, match="existing folder"):
        checkpoint.save(tmp_path / "gone" / "net.safetensors", vgg8, {})
    with pytest.raises(ValueError, match="not a folder"):
        checkpoint.save(tmp_path, vgg8, {})
    assert list(tmp_path.iterdir()) == []
