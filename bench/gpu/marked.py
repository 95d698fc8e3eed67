"""Stage `marked`: pytest -m cuda, on the test files that have such tests."""

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


def files(folder: Path) -> list[Path]:
    """Test files that mention the marker: collecting the others would only take time."""
    return sorted(p for p in folder.glob("test_*.py") if re.search(r"\bmark\.cuda\b", p.read_text(encoding="utf-8")))


def results(report: Path) -> dict[str, Any]:
    """Counts, failed tests and reasons of skips from a JUnit file."""
    cases = list(xml.parse(report).getroot().iter("testcase"))
    failed, skipped = {}, {}
    for case in cases:
        name = f"{case.get('classname', '')}::{case.get('name', '')}"
        for trouble in [*case.findall("failure"), *case.findall("error")]:
            failed[name] = (trouble.get("message") or "").splitlines()[0] if trouble.get("message") else ""
        if (skip := case.find("skipped")) is not None:
            skipped[name] = skip.get("message") or ""
    return {"tests": len(cases), "failed": failed, "skipped": skipped,
            "summary": f"{len(cases) - len(failed) - len(skipped)} passed, {len(failed)} failed, {len(skipped)} skipped"}


def run(task: Task) -> None:
    report = task.out.with_suffix(".xml")
    # Set before the process starts: cuBLAS needs it to be deterministic, and tests ask for that.
    environment = os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-q", "-p", "no:cacheprovider", f"--junitxml={report}",
               *map(str, files(ROOT / "python_tests"))]
    status = subprocess.run(command, cwd=ROOT, env=environment).returncode
    if not report.exists():
        raise Wrong(f"pytest ended with status {status} and wrote no report")
    found = results(report)
    task.save(found)
    if found["failed"]:
        shown = [f"{name}: {why}" for name, why in list(found["failed"].items())[:SHOWN]]
        raise Wrong(f"{found['summary']}: " + "; ".join(shown))
    if status != 0 or len(found["skipped"]) == found["tests"]:
        raise Wrong(f"{found['summary']}, pytest ended with status {status}: no test has shown anything")
