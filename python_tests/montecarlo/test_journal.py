"""A journal keeps finished chips bit for bit, whatever ends its process, and refuses what does not belong in it."""

import fcntl
import json
import math
import resource
import subprocess
import sys
import threading

import pytest
import torch
from torch import nn

import nft_ext as nft
from nft_ext.montecarlo import monte_carlo
from nft_ext.montecarlo.distributed.journal import Journal
from nft_ext.montecarlo.distributed.rows import Row, rows_of, tallies_of_rows
from nft_ext.montecarlo.execution import chip_evaluator
from nft_ext.montecarlo.statistics.label_tallies import label_tallies
from support.paths import ROOT

RUNS = 6
SPACING = nft.NVMDevice(sigma=0.3, relative_to="spacing")
HEADER = {"fixed": {"sigma": 0.1, "seed": 3}, "noted": {"threads": 1}, "recorded": {}}


def row(draw, value=0.5, seconds=0.25):
    return Row(draw, {"correct": value, "bin_images": [1.0, value]}, seconds)


def build(width=20):
    torch.manual_seed(2)
    return nft.convert(nn.Sequential(nn.Linear(9, width), nn.ReLU(), nn.Linear(width, 4)), nft.NVMDevice(sigma=0.3))


@pytest.fixture
def model():
    return build()


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(4)
    return torch.randn(30, 9, generator=generator), torch.randint(4, (30,), generator=generator)


def evaluate(model, data, **options):
    return monte_carlo(model, data, **({"runs": RUNS, "seed": 3, "chips_per_pass": 2, "progress": False} | options))


def figures(report):
    """The whole report but its wall time."""
    return {**report.to_dict(), "seconds": None}


# ---- lines


def test_tallies_read_back_bit_for_bit():
    torch.manual_seed(0)
    logits = 30 * torch.randn(5, 40, 7)
    logits[1, 3, 2] = math.nan
    logits[2, 5, 1] = -math.inf
    tallies = label_tallies(logits, torch.randint(7, (40,)))
    lines = [row.line() for row in rows_of(range(10, 15), tallies, 1.0)]
    again = tallies_of_rows(map(Row.parse, lines))
    for name, value in tallies.sums.items():
        # The bits inside a NaN say nothing.
        value, other = value.nan_to_num(nan=-1.0), again[name].nan_to_num(nan=-1.0)
        assert value.numpy().tobytes() == other.numpy().tobytes(), name
    assert [Row.parse(line).draw for line in lines] == [10, 11, 12, 13, 14]


@pytest.mark.parametrize(
    "damage",
    [
        lambda s: s[:-1],
        lambda s: s[:40],
        lambda s: s.replace("0.5", "0.6", 1),
        lambda s: s + s,
        lambda s: s[:30] + s,
        lambda s: "",
    ],
)
def test_a_changed_line_does_not_parse(damage):
    assert Row.parse(row(3).line()) == row(3)
    with pytest.raises(ValueError, match="checksum"):
        Row.parse(damage(row(3).line()))


# ---- the file


def test_what_was_added_is_there_at_the_next_opening(tmp_path):
    with Journal(tmp_path / "j", HEADER, lambda: {"slice": 5}) as journal:
        journal.add([row(0), row(2)])
        journal.add([row(1, math.inf)])
    with Journal(tmp_path / "j", HEADER, lambda: pytest.fail("settled anew")) as journal:
        assert journal.rows == {0: row(0), 2: row(2), 1: row(1, math.inf)}
        assert journal.settled == {"slice": 5} and journal.seconds == 0.75 and journal.notes == []


def test_whatever_length_a_kill_leaves_the_file_is_continued_without_the_torn_line(tmp_path):
    path = tmp_path / "j"
    with Journal(path, HEADER) as journal:
        journal.add([row(0), row(1)])
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    moments = {*range(0, len(whole), 9), *(end + i for end in ends for i in (-2, -1, 0, 1))}
    for length in sorted(m for m in moments if m < len(whole)):
        path.write_bytes(whole[:length])
        finished = max(0, sum(end <= length for end in ends) - 1)  # the header is a line too
        with Journal(path, HEADER) as journal:
            assert sorted(journal.rows) == list(range(finished))
            journal.add([row(draw) for draw in range(finished, 2)])
        assert path.read_bytes() == whole


def test_a_damaged_line_before_the_last_is_refused_by_number(tmp_path):
    path = tmp_path / "j"
    with Journal(path, HEADER) as journal:
        journal.add([row(0), row(1)])
    header, first, second = path.read_text().splitlines(keepends=True)
    path.write_text(header + first[:20] + second)
    with pytest.raises(
        ValueError, match=r"^resume: must have whole lines .*j: line 2 is damaged; delete it and all later lines"
    ):
        Journal(path, HEADER)
    path.write_text(header[:-5] + "\n" + first)
    with pytest.raises(ValueError, match="^resume: must begin with a whole header line; .*line 1"):
        Journal(path, HEADER)


def test_equal_duplicates_are_merged_and_different_ones_refused(tmp_path):
    path = tmp_path / "j"
    with Journal(path, HEADER) as journal:
        journal.add([row(0)])
    text = path.read_text()
    path.write_text(text + row(0, seconds=9.0).line() + "\n")
    with Journal(path, HEADER) as journal:
        assert journal.rows == {0: row(0)}
    path.write_text(text + row(0, 0.75).line() + "\n")
    with pytest.raises(
        ValueError, match="^resume: must hold one outcome per chip; .*line 3 gives draw 0 other figures"
    ):
        Journal(path, HEADER)


def test_another_configuration_is_refused_with_both_values_and_a_noted_difference_is_noted(tmp_path):
    path = tmp_path / "j"
    Journal(path, HEADER).close()
    before = path.read_bytes()
    other = {**HEADER, "fixed": {"sigma": 0.2, "seed": 3, "precision": "float32"}}
    with pytest.raises(
        ValueError, match="sigma: 0.1 in the file, 0.2 now; precision: nothing in the file, float32 now$"
    ):
        Journal(path, other)
    assert path.read_bytes() == before
    with Journal(path, {**HEADER, "noted": {"threads": 2}, "recorded": {"metrics": ["nll"]}}) as journal:
        assert journal.notes == ["j was begun with threads 1, now 2: chips of the two may differ by rounding"]


@pytest.mark.parametrize(
    "content", [b"draw,accuracy\n1,0.5\n", b'{"a": 1}', b"\x00\x01", b'{"format": "nft_ext.journal/9"}\n']
)
def test_another_kind_of_file_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "mine"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="^resume: must be a journal .*mine, which is another kind of file"):
        Journal(path, HEADER)
    assert path.read_bytes() == content


def test_a_file_in_use_is_refused(tmp_path):
    with Journal(tmp_path / "j", HEADER):
        with pytest.raises(BlockingIOError, match="resume: another process is writing this file; .*j'$"):
            Journal(tmp_path / "j", HEADER)
    Journal(tmp_path / "j", HEADER).close()
    with open(tmp_path / "j") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nothing holds it any more


def test_a_full_disk_names_the_file_and_keeps_what_is_finished(tmp_path):
    path = tmp_path / "j"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(path, HEADER) as journal:
        journal.add([row(0)])
        whole = path.read_bytes()
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 20, limits[1]))
            with pytest.raises(OSError, match="resume: cannot be written .*the 1 finished chips stay in it.*j'$"):
                journal.add([row(1)])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.read_bytes() == whole
        journal.add([row(1)])
    with Journal(path, HEADER) as journal:
        assert sorted(journal.rows) == [0, 1]


@pytest.mark.parametrize(
    "path, kind, words",
    [
        ("no/such/j", FileNotFoundError, "must lie in an existing folder"),
        (".", ValueError, "must name a file, not a folder"),
        ("/dev/full", ValueError, "must name a regular file"),
    ],
)
def test_bad_places_are_refused(tmp_path, path, kind, words):
    with pytest.raises(kind, match=f"^resume: {words}"):
        Journal(tmp_path / path, HEADER)


# ---- monte_carlo(resume=...)


def test_a_journal_changes_nothing_in_the_report(model, data, tmp_path):
    plain = evaluate(model, data)
    assert figures(evaluate(model, data, resume=tmp_path / "j")) == figures(plain)
    assert figures(evaluate(model, data, resume=tmp_path / "j")) == figures(plain)


def count_chips(monkeypatch, stop_after=None):
    """The draws evaluated; an interrupt once `stop_after` passes are done."""
    seen = []
    original = chip_evaluator.ChipEvaluator.tallies

    def tallies(self, draws, done):
        if stop_after is not None and len(seen) == stop_after:
            raise KeyboardInterrupt
        seen.append(draws)
        return original(self, draws, done)

    monkeypatch.setattr(chip_evaluator.ChipEvaluator, "tallies", tallies)
    return seen


def test_an_interrupted_evaluation_goes_on_where_it_was(model, data, tmp_path, monkeypatch):
    whole = evaluate(model, data)
    with monkeypatch.context() as patch:
        count_chips(patch, stop_after=2)
        part = evaluate(model, data, resume=tmp_path / "j")
    assert part.interrupted and part.runs == 4
    seen = count_chips(monkeypatch)
    again = evaluate(model, data, resume=tmp_path / "j")
    assert seen == [[4, 5]] and figures(again) == figures(whole)
    assert again.seconds > part.seconds / 2  # the earlier chips' time is in it


def test_a_pass_that_was_half_written_is_run_again_and_only_the_missing_chip_added(model, data, tmp_path, monkeypatch):
    path = tmp_path / "j"
    whole = evaluate(model, data, resume=path)
    text = path.read_text()
    path.write_text("".join(text.splitlines(keepends=True)[:4]) + "{")  # draws 0, 1 and 2 of passes of 2
    seen = count_chips(monkeypatch)
    assert figures(evaluate(model, data, resume=path)) == figures(whole)
    assert seen == [[2, 3], [4, 5]]
    draws = [json.loads(line)["draw"] for line in path.read_text().splitlines()[1:]]
    assert draws == list(range(RUNS))


def test_more_runs_and_other_metrics_continue_the_file(model, data, tmp_path, monkeypatch):
    evaluate(model, data, resume=tmp_path / "j", runs=4)
    seen = count_chips(monkeypatch)
    longer = evaluate(model, data, resume=tmp_path / "j", metrics=("accuracy", "nll"))
    assert seen == [[4, 5]]
    assert longer.nll.per_run.tolist() == evaluate(model, data, metrics=("accuracy", "nll")).nll.per_run.tolist()
    assert evaluate(model, data, resume=tmp_path / "j", runs=3).runs == 3


def test_the_pilot_s_slices_are_settled_once_a_file(model, data, tmp_path, monkeypatch):
    from nft_ext.montecarlo.execution import plan

    first = evaluate(model, data, resume=tmp_path / "j", protocol="stratified", runs=20)
    monkeypatch.setattr(plan, "pilot", lambda *_: pytest.fail("a second pilot"))
    again = evaluate(model, data, resume=tmp_path / "j", protocol="stratified", runs=20)
    assert figures(again) == figures(first) and again.pilot is not None
    other = json.loads((tmp_path / "j").read_text().splitlines()[0])["settled"]["slice_images"] - 1
    with pytest.raises(ValueError, match=f"^resume: .*slice_images {other + 1}, {other} now"):
        evaluate(model, data, resume=tmp_path / "j", protocol="stratified", runs=20, slice_images=other)


def test_a_target_is_reached_through_a_journal_as_without(model, data, tmp_path, monkeypatch):
    options = dict(target_ci=0.012, chips_per_pass=16)
    whole = evaluate(model, data, **options)
    assert whole.stopping["reached"] and whole.runs > 64
    with monkeypatch.context() as patch:
        count_chips(patch, stop_after=3)
        assert evaluate(model, data, resume=tmp_path / "j", **options).interrupted
    assert figures(evaluate(model, data, resume=tmp_path / "j", **options)) == figures(whole)


@pytest.mark.parametrize(
    "field, change",
    [
        ("sigma", lambda m, d, o: (m, d, o | {"sigma": 0.1})),
        ("seed", lambda m, d, o: (m, d, o | {"seed": 4})),
        ("precision", lambda m, d, o: (m, d, o | {"precision": "bfloat16"})),
        ("protocol", lambda m, d, o: (m, d, o | {"protocol": "stratified", "slice_images": 3})),
        ("data", lambda m, d, o: (m, (d[0] + 1e-3, d[1]), o)),
        ("images", lambda m, d, o: (m, (d[0][:20], d[1][:20]), o)),
        ("layer 0: out_features", lambda m, d, o: (build(21), d, o)),
        ("layer 1", lambda m, d, o: (m.__setitem__(1, nn.GELU()) or m, d, o)),
        ("the network: gain", lambda m, d, o: (setattr(m, "gain", lambda x: 2 * x) or m, d, o)),
        ("weights", lambda m, d, o: (m[2].weight.data.mul_(1.001) is None or m, d, o)),
        ("devices.relative_to", lambda m, d, o: (nft.convert(nft.restore(m), SPACING), d, o)),
        ("noise_off", lambda m, d, o: (m[0].set_enabled(False) or m, d, o)),
        ("streams.0", lambda m, d, o: (setattr(m[0], "stream", 7) or m, d, o)),
    ],
)
def test_what_fixes_a_chip_s_figures_is_held_fixed(model, data, tmp_path, field, change):
    evaluate(model, data, resume=tmp_path / "j")
    model, data, options = change(model, data, {})
    with pytest.raises(ValueError, match=f"^resume: must be of the same conf.*; .*{field}: .* in the file, .* now"):
        evaluate(model, data, resume=tmp_path / "j", **options)


def test_what_changes_rounding_only_is_noted(model, data, tmp_path):
    evaluate(model, data, resume=tmp_path / "j", runs=4)
    report = evaluate(model, data, resume=tmp_path / "j", chips_per_pass=3, batch_size=7)
    assert report.runs == RUNS and len(report.notes) == 2
    assert any("batch_size 128, now 7: chips of the two may differ by rounding" in note for note in report.notes)


def test_another_precision_of_float32_products_is_noted(model, data, tmp_path, monkeypatch):
    evaluate(model, data, resume=tmp_path / "j", runs=4)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    (note,) = evaluate(model, data, resume=tmp_path / "j").notes
    assert note.startswith("j was begun with float32_matmul_precision highest, now medium")


class Louder(nft.NVMDevice):
    """A device with conductances of its own."""

    def level_deviations(self):
        return 2.0


def test_another_class_of_device_is_another_device(model, data, tmp_path):
    evaluate(model, data, resume=tmp_path / "j")
    louder = nft.convert(nft.restore(model), Louder(sigma=0.3))
    with pytest.raises(ValueError, match="devices.class: nothing in the file, class Louder"):
        evaluate(louder, data, resume=tmp_path / "j")


@pytest.mark.parametrize("value, kind", [(3, TypeError), (b"j", TypeError)])
def test_resume_must_be_a_path(model, data, value, kind):
    with pytest.raises(kind, match="^resume: must be the path of a file"):
        evaluate(model, data, resume=value)


class Counting(nn.Module):
    """Counts its forwards, as some networks do."""

    def __init__(self):
        super().__init__()
        self.layer, self.calls, self._cache = nn.Linear(9, 4), 0, None

    def forward(self, x):
        self.calls += 1
        self._cache = torch.ones(self.calls)
        return self.layer(x)


def test_forwards_that_change_a_network_do_not_make_another_network_of_a_new_one(data, tmp_path):
    def fresh():
        torch.manual_seed(2)
        return nft.convert(Counting(), nft.NVMDevice(sigma=0.3))

    evaluate(fresh(), data, resume=tmp_path / "j", runs=3)
    model = fresh()
    evaluate(model, data, resume=tmp_path / "j", batch_size=7)
    with pytest.raises(ValueError, match="the network: calls: 0 in the file, .* now"):
        evaluate(model, data, resume=tmp_path / "j")


def test_values_that_cannot_be_compared_are_named_in_the_report(model, data, tmp_path):
    model.lock = threading.Lock()
    expected = "values of these types in the network cannot be compared: _thread.lock"
    for _ in range(2):
        assert any(expected in note for note in evaluate(model, data, resume=tmp_path / "j").notes)


# ---- kills


@pytest.mark.slow
def test_kills_at_random_moments_lose_and_repeat_nothing(tmp_path):
    """Five of what bench/studies/kills.py does a hundred times."""
    bench = ROOT / "bench" / "studies" / "kills.py"
    out = tmp_path / "kills.json"
    done = subprocess.run(
        [sys.executable, bench, "--kills", "5", "--runs", "60", "--out", out],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["kills"] >= 5 and found["evaluations"] >= 1
    assert (found["finished_runs_lost"], found["runs_counted_twice"], found["reports_that_differ"]) == (0, 0, 0)
