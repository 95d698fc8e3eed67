"""`over_chips`: a function of the model on the chips of `monte_carlo`, with its statistics, resume and ranks."""

import json
import math
import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import nft_ext as nft
from nft_ext.metrics.distributions import student_t_quantile
from support.paths import importing

NVM = nft.NVMDevice(sigma=0.3)
DATA = (torch.randn(60, 9, generator=torch.Generator().manual_seed(1)), torch.arange(60) % 4)


def build():
    torch.manual_seed(2)
    return nft.convert(nn.Sequential(nn.Linear(9, 20), nn.ReLU(), nn.Dropout(0.5), nn.Linear(20, 4)), NVM)


@pytest.fixture
def model():
    return build()


def accuracy(model):
    return float((model(DATA[0]).argmax(dim=1) == DATA[1]).double().mean())


def right(output, batch):
    """The accuracy as a metric of monte_carlo that nobody knows to be a share."""
    found = (output.argmax(dim=1) == batch[1]).float()
    return found, torch.ones_like(found)


right.higher_is_better = True


def spread(model):
    logits = model(DATA[0])
    return {"accuracy": accuracy(model), "spread": float(logits.std()), "largest": logits.amax()}


def over(model, fn=accuracy, **options):
    return nft.over_chips(model, fn, **{"runs": 12, "seed": 3, "progress": False} | options)


def values(report, name="value"):
    return report.metrics[name].per_run.tolist()


@pytest.mark.parametrize("sigma", [None, 0.1])
def test_run_r_is_chip_r_of_monte_carlo_bit_for_bit(model, sigma):
    report = nft.monte_carlo(model, DATA, metrics={"right": right}, runs=12, seed=3, sigma=sigma, progress=False)
    found, expected = over(model, sigma=sigma), report.metrics["right"]
    assert values(found) == expected.per_run.tolist()
    one = found.metrics["value"]
    assert (one.mean, one.std, one.ci95, one.worst) == (expected.mean, expected.std, expected.ci95, expected.worst)
    assert found.sigma == (0.3 if sigma is None else sigma) and found.runs == 12


def test_a_chip_is_that_of_program(model):
    seen = []
    over(model, lambda m: seen.append(m(DATA[0])) or 0.0, runs=3)
    for draw, logits in enumerate(seen):
        plain = nft.program(model, seed=3, draw=draw).eval()
        torch.testing.assert_close(logits, plain(DATA[0]), rtol=1e-5, atol=1e-6)


def test_a_dict_has_a_statistic_per_key(model):
    report = over(model, spread, higher_is_better={"spread": False})
    assert list(report.metrics) == ["accuracy", "spread", "largest"]
    assert values(report, "accuracy") == values(over(model))
    one = report.metrics["spread"]
    assert one.worst == max(one.per_run) and report.metrics["largest"].worst == min(values(report, "largest"))
    assert one.ci95 >= student_t_quantile(0.975, 11) * float(np.std(one.per_run, ddof=1)) / 12**0.5
    assert one.precision.rough and "rough 95 % intervals" in str(report)
    assert f"up to {100 * (1 - 0.05 ** (1 / 12)):.2g} % of chips may be unlike any seen" in str(report)


def test_the_model_is_in_eval_mode_without_gradients_and_left_as_it_was(model):
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def fn(m):
        assert not m.training and not m[2].training and not torch.is_grad_enabled()
        m.train()  # what other people's loops do; the next chip begins in eval mode again
        with torch.enable_grad():
            assert m(DATA[0]).requires_grad
        return 1.0

    over(model, fn, runs=3)
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_random_numbers_of_fn_follow_from_seed_and_chip(model, tmp_path):
    """So a chip's figure depends neither on the order nor on what ran before; the caller's generators stay."""

    legacy = np.random  # what other people's code draws from

    def fn(m):
        return {"torch": torch.rand(()).item(), "numpy": legacy.rand(), "python": random.random()}

    def begin():
        torch.manual_seed(1)
        random.seed(1)
        legacy.seed(1)

    begin()
    first = over(model, fn)
    assert len({*values(first, "torch"), *values(first, "numpy"), *values(first, "python")}) == 36
    drawn = fn(model)
    begin()
    assert drawn == fn(model)
    over(model, fn, runs=5, resume=tmp_path / "journal")
    continued = over(model, fn, resume=tmp_path / "journal")
    for name in ("torch", "numpy", "python"):
        assert values(continued, name) == values(first, name)


def test_a_target_fixes_the_number_of_chips_by_a_pilot(model):
    """The rule of `monte_carlo` on the same values gives the same chips and the same interval."""
    expected = nft.monte_carlo(model, DATA, metrics={"right": right}, seed=3, target_ci=0.008, progress=False)
    found = over(model, target_ci=0.008)
    assert found.runs == expected.runs > 64 and found.metrics["value"].ci95 <= 0.008
    assert found.metrics["value"].ci95 == pytest.approx(expected.metrics["right"].ci95, rel=1e-9)
    assert found.stopping["reached"] and found.stopping["pilot_runs"] == 64
    far = over(model, spread, target_ci=1e-9, target_metric="spread", max_runs=70)
    assert far.runs == 70 and not far.stopping["reached"] and "is not reached with max_runs = 70" in far.notes[0]


def test_a_journal_continues_bit_for_bit_and_only_runs_the_others(model, tmp_path):
    """Calls are counted in a file: what fn's closure holds would be part of its identity."""
    whole, journal, calls = over(model, spread), tmp_path / "journal", tmp_path / "calls"

    def fn(m):
        if calls.read_text() == "xxxxx":
            raise KeyboardInterrupt
        with calls.open("a") as file:
            file.write("x")
        return spread(m)

    calls.write_text("")
    report = over(model, fn, resume=journal)
    assert report.interrupted and report.runs == 5 and "interrupted after 5 of 12 chips" in report.notes
    calls.write_text("y")
    continued = over(model, fn, resume=journal)
    assert calls.read_text() == "yxxxxxxx" and not continued.interrupted
    for name in whole.metrics:
        assert values(continued, name) == values(whole, name)
    assert over(model, fn, runs=4, resume=journal).runs == 4 and calls.read_text() == "yxxxxxxx"


def forked(target):
    """Runs `target` in a forked process; its exit status."""
    child = os.fork()
    if child == 0:
        try:
            target()
        finally:
            os._exit(9)
    return os.waitpid(child, 0)[1]


def test_a_kill_in_the_middle_of_a_chip_loses_that_chip_alone(model, tmp_path):
    journal, whole = tmp_path / "journal", over(model)
    flag = tmp_path / "kill"
    flag.touch()

    def fn(m, calls=[0]):
        calls[0] += 1
        if flag.exists() and calls[0] == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return accuracy(m)

    first = fn.__defaults__
    assert forked(lambda: over(model, fn, resume=journal)) == signal.SIGKILL
    assert fn.__defaults__ == first and len(journal.read_text().splitlines()) == 6
    flag.unlink()
    assert values(over(model, fn, resume=journal)) == values(whole)


def test_another_function_network_or_kind_of_journal_is_refused(model, tmp_path):
    journal = tmp_path / "journal"
    over(model, resume=journal)
    with pytest.raises(ValueError, match="differs in .*fn"):
        over(model, lambda m: 1.0, resume=journal)
    with pytest.raises(ValueError, match="differs in .*sigma: 0.3 in the file, 0.2 now"):
        over(model, sigma=0.2, resume=journal)
    with pytest.raises(ValueError, match="differs in .*seed: 3 in the file, 4 now"):
        over(model, seed=4, resume=journal)
    with pytest.raises(ValueError, match="must be of the same configuration"):
        nft.monte_carlo(model, DATA, runs=12, seed=3, progress=False, resume=journal)
    nft.monte_carlo(model, DATA, runs=12, seed=3, progress=False, resume=tmp_path / "other")
    with pytest.raises(ValueError, match="kind: nothing in the file, over_chips now"):
        over(model, resume=tmp_path / "other")


def test_an_exception_names_the_chip(model, tmp_path):
    def fn(m, calls=[]):
        calls.append(1)
        if len(calls) == 3:
            raise KeyError("no such column")
        return 1.0

    with pytest.raises(RuntimeError, match=r"fn: failed on chip 2 of seed 3 \(KeyError: 'no such column'\)") as error:
        over(model, fn, resume=tmp_path / "journal")
    assert isinstance(error.value.__cause__, KeyError)
    draws = [json.loads(line)["draw"] for line in (tmp_path / "journal").read_text().splitlines()[1:]]
    assert draws == [0, 1]  # what was finished stays


def changing(m, calls=[]):
    calls.append(1)
    return {"a": 1.0} if len(calls) < 3 else {"b": 1.0}


def training(m):
    with torch.no_grad():
        m[0].weight.add_(1.0)
    return 1.0


@pytest.mark.parametrize(
    "fn, words",
    [
        (lambda m: math.nan, "fn: must return finite numbers; got nan for 'value' on chip 0"),
        (lambda m: {"loss": torch.tensor(math.inf)}, "fn: must return finite numbers; got inf for 'loss' on chip 0"),
        (lambda m: None, "fn: must return numbers; got NoneType for 'value' on chip 0"),
        (lambda m: True, "fn: must return numbers; got bool"),
        (lambda m: m(DATA[0]), "fn: must return numbers; got Tensor for 'value'"),
        (lambda m: {}, r"fn: must return a number, or a dict of names and numbers, at least one; got keys \[\]"),
        (lambda m: {3: 1.0}, r"fn: must return a number, or a dict.*got keys \[3\] on chip 0"),
        (changing, "fn: must return the same keys on every chip, a; got b on chip 2"),
        (
            training,
            "fn: must not change the model's parameters, which all chips share; got '0.weight' changed on chip 0",
        ),
        (3, "fn: must be a function"),
        (nn.Linear(2, 2), "fn: must be a function"),
    ],
)
def test_what_fn_must_return(model, fn, words):
    with pytest.raises((ValueError, TypeError), match=words):
        over(model, fn)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"runs": 1}, "runs: must be an integer in 2"),
        ({"seed": -1}, "seed"),
        ({"target_ci": 0.0}, "target_ci: must be a half-width > 0, in the unit of the figure"),
        ({"target_ci": 0.1, "min_runs": 3}, "min_runs: must be an integer in 64"),
        ({"target_metric": "accuracy"}, "target_metric: must be a key of the figures, given with target_ci"),
        ({"target_ci": 0.1}, "target_metric: must be one of accuracy, largest, spread with target_ci"),
        ({"target_ci": 0.1, "target_metric": "spred"}, r"target_metric: must be one of .*\(did you mean 'spread'\?\)"),
        ({"higher_is_better": {"loss": False}}, "higher_is_better: must have keys among accuracy, largest, spread"),
        ({"higher_is_better": {"spread": 3}}, r"higher_is_better\['spread'\]: must be True or False"),
        ({"higher_is_better": 1}, "higher_is_better: must be True or False"),
    ],
)
def test_bad_arguments_are_refused_before_the_second_chip(model, options, words):
    calls = []
    with pytest.raises((ValueError, TypeError), match=words):
        over(model, lambda m: calls.append(1) or spread(m), **options)
    assert len(calls) <= 1


def test_a_model_without_noise_is_refused():
    with pytest.raises(ValueError, match="model: must hold noisy layers"):
        over(nn.Linear(2, 2))


def test_layers_that_did_not_run_are_named(model):
    with pytest.warns(UserWarning, match="over_chips: these noisy layers did not run on the first chip.*: 3"):
        report = over(model, lambda m: float(m[0](DATA[0]).mean()), runs=2)
    assert any("on the first chip" in note for note in report.notes)


def test_a_report_reads_back_and_writes_its_files(model, tmp_path):
    report = over(model, spread, target_ci=0.5, target_metric="spread")
    report.to_json(tmp_path / "report.json")
    again = nft.ChipsReport.from_json(tmp_path / "report.json")
    assert again.to_dict() == report.to_dict() and str(again) == str(report)
    report.to_csv(tmp_path / "report.csv")
    lines = (tmp_path / "report.csv").read_text().splitlines()
    assert lines[0] == "run,seed,sigma,accuracy,spread,largest" and len(lines) == 65
    assert float(lines[1].split(",")[4]) == report.metrics["spread"].per_run[0]
    assert "spread over 64 programmed chips" in str(report) and "sigma = 0.3 of the maximal conductance" in str(report)
    content = (tmp_path / "report.json").read_text()
    (tmp_path / "report.json").write_text(content.replace('"runs": 64', '"runs": 65'))
    with pytest.raises(ValueError, match="path: must be a whole report of over_chips.*another checksum"):
        nft.ChipsReport.from_json(tmp_path / "report.json")


def test_a_plot_shows_one_figure(model, tmp_path):
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    report = over(model, spread)
    report.plot(tmp_path / "first.png")
    report.plot(tmp_path / "spread.svg", metric="spread")
    assert (
        "spread of a chip" in (tmp_path / "spread.svg").read_text() and (tmp_path / "first.png").stat().st_size > 1000
    )
    with pytest.raises(ValueError, match="metric: must be one of accuracy, spread, largest"):
        report.plot(tmp_path / "no.png", metric="ekl")


RANKS = """
import json, os, sys
import torch
from torch import nn
import nft_ext as nft

torch.set_num_threads(1)
torch.manual_seed(2)
model = nft.convert(nn.Sequential(nn.Linear(9, 20), nn.ReLU(), nn.Linear(20, 4)), nft.NVMDevice(sigma=0.3))
x = torch.randn(30, 9)

def fn(model):
    return {"sum": model(x).sum(), "random": torch.rand(())}

out = sys.argv[1]
for number in range(int(sys.argv[2])):
    if number and os.fork() == 0:
        os.environ["RANK"] = str(number)
        break
name = os.environ.get("RANK", "0")
report = nft.over_chips(model, fn, seed=3, target_ci=0.5, target_metric="sum", progress=False, resume=f"{out}/journal")
report.to_json(f"{out}/report-{name}.json")
if name == "0":
    for _ in range(int(sys.argv[2]) - 1):
        assert os.wait()[1] == 0
else:
    os._exit(0)
"""


@pytest.mark.slow
def test_ranks_give_the_report_of_one_process_bit_for_bit(tmp_path):
    found = []
    for size in (1, 3):
        folder = tmp_path / str(size)
        folder.mkdir()
        address = {"WORLD_SIZE": "3", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29712"}
        environment = importing(OMP_NUM_THREADS="1", **(address if size > 1 else {}))
        done = subprocess.run(
            [sys.executable, "-c", RANKS, str(folder), str(size)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        reports = [json.loads(path.read_text()) for path in sorted(folder.glob("report-*.json"))]
        assert reports == [reports[0]] * size
        found.append({**reports[0], "seconds": None, "crc": None})
    assert found[0] == found[1]


def writes_data(m):
    m[0].weight.data.mul_(0.5)


def replaces(m):
    m[0].weight = nn.Parameter(m[0].weight.detach().clone())


def casts(m):
    m.bfloat16().float()


@pytest.mark.parametrize("change", [writes_data, replaces, casts], ids=lambda f: f.__name__)
def test_parameters_changed_past_their_version_are_noticed(model, change):
    def fn(m):
        found = accuracy(m)
        change(m)
        return found

    with pytest.raises(ValueError, match=r"must not change the model's parameters.*'0\.weight' changed on chip 0"):
        over(model, fn)


def test_a_context_left_open_is_refused(model):
    opened = []

    def fn(m):
        found = accuracy(m)
        opened.append(nft.noise(m, enabled=False))
        opened[-1].__enter__()
        return found

    with pytest.raises(ValueError, match="fn: must leave every noise context.*one open on chip 0"):
        over(model, fn)
    opened[0].__exit__(None, None, None)


def test_buffers_that_fn_changes_do_not_reach_the_next_chip():
    torch.manual_seed(2)
    model = nft.convert(nn.Sequential(nn.Linear(9, 20), nn.BatchNorm1d(20), nn.Linear(20, 4)), NVM)

    def fn(m):
        m.train()(DATA[0])  # new running statistics
        return accuracy(m.eval())

    before = model[1].running_mean.clone()
    found = over(model, fn, runs=4)
    assert torch.equal(model[1].running_mean, before)
    again = []
    for draw in range(4):
        with nft.chips(model, seed=3, draws=[draw]), torch.no_grad():
            model[1].reset_running_stats()
            again.append(fn(model))
    assert values(found) == again
