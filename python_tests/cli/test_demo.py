"""The demo, end to end on real digits at a tiny scale, and what an interrupt leaves."""

import json

import pytest
import torch

from nft_ext import demo
from nft_ext.training import load_model

TINY = demo.SETTINGS["digits"].replace(width=0.0625, epochs=1, runs=2, sigmas=(0.0, 0.3))


@pytest.mark.usefixtures("few_digits")
def test_every_method_is_trained_measured_and_written(tmp_path, capsys):
    assert demo.Demo(TINY, None, tmp_path).run()
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["sweeps"]) == set(demo.METHODS)
    assert all(len(reports) == 2 for reports in results["sweeps"].values())
    for name in demo.METHODS:
        model, meta = load_model(tmp_path / f"{name}.safetensors")
        assert meta["method"]["name"] == name
        assert model(torch.zeros(1, 1, 32, 32)).shape == (1, 10)
    assert (tmp_path / "accuracy.png").stat().st_size > 10_000
    table = (tmp_path / "table.txt").read_text()
    text = capsys.readouterr().out
    assert table.strip() in text and "This is a demo" in text
    for name in demo.METHODS:
        assert name in table


@pytest.mark.usefixtures("few_digits")
def test_an_interrupt_keeps_what_was_finished(tmp_path, capsys, monkeypatch):
    real, calls = demo.fit, []

    def fit(*args, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(demo, "fit", fit)
    assert not demo.Demo(TINY.replace(methods=("vanilla", "noise")), None, tmp_path).run()
    assert list(json.loads((tmp_path / "results.json").read_text())["sweeps"]) == ["vanilla"]
    assert (tmp_path / "accuracy.png").exists() and (tmp_path / "vanilla.safetensors").exists()
    assert "stopped" in capsys.readouterr().out


def test_unknown_methods_are_refused_before_work(tmp_path):
    with pytest.raises(ValueError, match="methods.*irs.*nosuch"):
        demo.Demo(TINY.replace(methods=("nosuch",)), None, tmp_path / "out")
    assert not (tmp_path / "out").exists()
