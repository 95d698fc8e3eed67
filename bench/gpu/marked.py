"""Stage `marked`: pytest -m cuda, on the test files with such tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as xml
from pathlib import Path
from typing import Any

from bench.gpu.child import Task, Wrong

ROOT = Path(__file__).resolve().parents[2]
SHOWN = 5
LAST_SECONDS = 5.0  # seconds kept for the end of the stage


def files(folder: Path) -> list[Path]:
    """Test files that name the marker: collecting the others would cost time."""
    return sorted(p for p in folder.rglob("test_*.py") if re.search(r"\bmark\.cuda\b", p.read_text(encoding="utf-8")))


def results(report: Path) -> dict[str, Any]:
    """Counts, failed tests and skip reasons from a JUnit file."""
    cases = list(xml.parse(report).getroot().iter("testcase"))
    failed, skipped = {}, {}
    for case in cases:
        name = f"{case.get('classname', '')}::{case.get('name', '')}"
        for trouble in [*case.findall("failure"), *case.findall("error")]:
            failed[name] = (trouble.get("message") or "").splitlines()[0] if trouble.get("message") else ""
        if (skip := case.find("skipped")) is not None:
            skipped[name] = skip.get("message") or ""
    found = {"tests": len(cases), "failed": failed, "skipped": skipped}
    return found | {"summary": summary(found)}


def summary(found: dict[str, Any]) -> str:
    failed, skipped = len(found["failed"]), len(found["skipped"])
    return f"{found['tests'] - failed - skipped} passed, {failed} failed, {skipped} skipped"


def pytest(marks: str, report: Path, seconds: float | None = None) -> int | None:
    """Runs the tests with these marks. Returns pytest's status, or None after a timeout."""
    # Set before the process starts: cuBLAS needs it for deterministic tests.
    environment = os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        marks,
        "-q",
        "-p",
        "no:cacheprovider",
        f"--junitxml={report}",
        *map(str, files(ROOT / "python_tests")),
    ]
    try:
        return subprocess.run(command, cwd=ROOT, env=environment, timeout=seconds).returncode
    except subprocess.TimeoutExpired:
        return None


def joined(first: dict[str, Any], second: dict[str, Any] | None) -> dict[str, Any]:
    """Joins the results of the quick and the slow tests; `second` is None if the slow tests timed out."""
    if second is None:
        return first | {"summary": first["summary"] + "; no time was left for the slow ones"}
    found = {
        "tests": first["tests"] + second["tests"],
        "failed": first["failed"] | second["failed"],
        "skipped": first["skipped"] | second["skipped"],
    }
    return found | {"summary": summary(found)}


def run(task: Task) -> None:
    """The quick tests, then slow ones while time remains."""
    report = task.out.with_suffix(".xml")
    status = pytest("cuda and not slow", report)
    if not report.exists():
        raise Wrong(f"pytest ended with status {status} and wrote no report")
    found = results(report)
    task.save(found)
    slow_report = task.out.with_suffix(".slow.xml")
    if not found["failed"] and status == 0:
        slow = pytest("cuda and slow", slow_report, max(1.0, task.left() - LAST_SECONDS))
        found = joined(found, results(slow_report) if slow is not None and slow_report.exists() else None)
        status = slow or status
        task.save(found)
    if found["failed"]:
        shown = [f"{name}: {why}" for name, why in list(found["failed"].items())[:SHOWN]]
        raise Wrong(f"{found['summary']}: " + "; ".join(shown))
    if status != 0 or len(found["skipped"]) == found["tests"]:
        raise Wrong(f"{found['summary']}, pytest ended with status {status}: no test has shown anything")
