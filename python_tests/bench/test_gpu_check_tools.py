"""What bench/gpu_check.py reads of other tools: pytest's report, the sanitizers' words."""

import subprocess

import pytest
import torch

from bench.gpu import marked, sanitize, small, stages
from bench.gpu.child import NotHere, Task, Wrong
from support.paths import ROOT

JUNIT = """<testsuites><testsuite><testcase classname="t.a" name="one"/><testcase classname="t.a" name="two">
<failure message="assert 1 == 2&#10;more">long</failure></testcase><testcase classname="t.b" name="three">
<skipped message="needs two CUDA devices"/></testcase></testsuite></testsuites>"""


def test_a_pytest_report(tmp_path):
    (tmp_path / "r.xml").write_text(JUNIT)
    found = marked.results(tmp_path / "r.xml")
    assert found["tests"] == 3 and found["failed"] == {"t.a::two": "assert 1 == 2"}
    assert (
        found["skipped"] == {"t.b::three": "needs two CUDA devices"}
        and found["summary"] == "1 passed, 1 failed, 1 skipped"
    )


SUITE = "<testsuites><testsuite>{}</testsuite></testsuites>"
FINE_CASE = '<testcase classname="a" name="b"/>'
BAD_CASE = '<testcase classname="a" name="c"><failure message="wrong"/></testcase>'


@pytest.mark.parametrize(
    "quick, slow, summary",
    [
        (3 * FINE_CASE, 2 * FINE_CASE, "5 passed, 0 failed, 0 skipped"),
        (3 * FINE_CASE, None, "3 passed, 0 failed, 0 skipped; no time was left for the slow ones"),
    ],
)
def test_quick_tests_come_before_slow_ones(quick, slow, summary, monkeypatch, tmp_path):
    def run(marks, report, seconds=None):
        cases = quick if marks == "cuda and not slow" else slow
        if cases is None:
            return None
        report.write_text(SUITE.format(cases))
        return 0

    monkeypatch.setattr(marked, "pytest", run)
    task = Task(tmp_path / "found.json", 60.0, {})
    marked.run(task)
    assert stages.read_json(task.out)["summary"] == summary


def test_a_failed_quick_test_ends_the_stage(monkeypatch, tmp_path):
    def run(marks, report, seconds=None):
        report.write_text(SUITE.format(FINE_CASE + BAD_CASE))
        return 1

    monkeypatch.setattr(marked, "pytest", run)
    with pytest.raises(Wrong, match="1 passed, 1 failed, 0 skipped: a::c: wrong"):
        marked.run(Task(tmp_path / "found.json", 60.0, {}))


def test_files_with_marked_tests_are_found():
    tests = ROOT / "python_tests"
    names = {p.relative_to(tests).as_posix() for p in marked.files(tests)}
    assert {
        f"cuda/test_{name}.py" for name in ("operators", "products", "compile", "epilogue", "graphs", "root")
    } <= names
    assert "data/test_augment.py" in names and "device/test_philox.py" not in names


FINE = {
    "memcheck": "========= ERROR SUMMARY: 0 errors\n",
    "racecheck": "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n",
}
FOUND = {
    "memcheck": "========= Invalid __global__ read of size 4 bytes\n=========     at nft::kernel+0x10\n"
    "========= ERROR SUMMARY: 2 errors\n",
    "racecheck": "========= Error: Race reported between Write access at a and Read access at b [9 hazards]\n"
    "========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)\n",
}
RAN = f"40 of 50 {sanitize.LAST_LINE}\n"


@pytest.mark.parametrize("kind", ["memcheck", "racecheck"])
def test_what_a_sanitizer_says(kind):
    found = sanitize.verdict(kind, RAN + FINE[kind], 0)
    assert found["findings"] == 0 and found["summary"].endswith("; 40 of 50 small shapes ran")
    with pytest.raises(Wrong, match=f"{kind} reports .*(Invalid __global__ read|Race reported)"):
        sanitize.verdict(kind, RAN + FOUND[kind], 0)
    with pytest.raises(Wrong, match=f"compute-sanitizer itself failed: {sanitize.BROKEN}: a reason"):
        sanitize.verdict(kind, f"========= {sanitize.BROKEN}: a reason\n" + FOUND[kind], 1)
    with pytest.raises(Wrong, match="did not end under"):
        sanitize.verdict(kind, "Traceback: boom\n" + FINE[kind], 1)
    with pytest.raises(Wrong, match="did not end under"):
        sanitize.verdict(kind, RAN, 0)
    with pytest.raises(NotHere, match="does not support this machine: Device not supported"):
        sanitize.verdict(kind, "========= Error: Device not supported\n", 1)


@pytest.mark.parametrize(
    "help_text, options",
    [
        ("  --kernel-name arg\n  --kernel-name-exclude arg\n", ["--kernel-name", "kns=nft"]),
        ("  --kernel-regex arg\n", ["--kernel-regex", "kns=nft"]),
        ("  --tool arg\n", []),
    ],
)
def test_a_sanitizer_is_kept_to_our_kernels_as_its_version_says_it(help_text, options):
    assert sanitize.only_ours(help_text) == options


def test_sanitized_cases_come_in_turns():
    order, kinds = [], [[lambda name=name: order.append(name) for name in kind] for kind in ("abcd", "1", "xy")]
    for case in small.in_turns(kinds):
        case()
    assert sorted(order) == sorted("abcd1xy") and "1" in order[:3] and set("xy") <= set(order[:5])


def test_the_librarys_gradients_are_left_out_under_racecheck_only(monkeypatch, tmp_path, capsys):
    commands = []

    def run(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, stdout=RAN + "".join(FINE.values()))

    monkeypatch.setattr(sanitize, "tool", lambda: "compute-sanitizer")
    monkeypatch.setattr(sanitize.subprocess, "run", run)
    for kind in FINE:
        sanitize.run_tool(kind, Task(tmp_path / "found.json", 60.0, {}))
    assert [c[-1] == small.ONLY_OURS for c in commands] == [False, False, False, True]
    asked = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(small, "cases", lambda only_ours: asked.append(only_ours) or [])
    small.main(1.0, only_ours=True)
    assert asked == [True] and small.LAST_LINE in capsys.readouterr().out


def test_a_missing_sanitizer_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(NotHere, match="compute-sanitizer was not found"):
        sanitize.tool()
