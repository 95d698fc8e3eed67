"""Describes the machine of a measurement."""

from __future__ import annotations

import argparse
import ctypes
import datetime
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

import nft_ext
from nft_ext._common.files import check_writable_target, write_json


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def header() -> dict[str, Any]:
    """Machine, versions, instruction sets and threads, as JSON types."""
    facts = nft_ext.info()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "load_at_start": round(os.getloadavg()[0], 2),
        "nft_ext": facts["nft_ext"],
        "nft_ext_instruction_set": facts["instruction_set"],
        "nft_ext_compiler": facts["compiler"],
        "torch": facts["torch"],
        "torch_instruction_set": torch.backends.cpu.get_cpu_capability(),
        "onednn": torch.backends.mkldnn.is_available(),
        "numpy": facts["numpy"],
        "python": facts["python"],
        "system": f"{platform.system()} {platform.release()}",
    }


def output(text: str) -> Path:
    """The type of an option that names an output file: checked before hours of work."""
    path = Path(text)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return check_writable_target("file", path)
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def record(out: Path, study: str, found: dict[str, Any]) -> None:
    """Writes the results of the module bench.studies.`study`, with the machine and the command."""
    command = shlex.join(["python", "-m", f"bench.studies.{study}", *sys.argv[1:]])
    write_json(out, {"machine": header(), "command": command, **found})


def text(facts: dict[str, Any]) -> str:
    return (
        f"{facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads, "
        f"load {facts['load_at_start']:g} at the start  ({facts['system']}, {facts['date']})\n"
        f"nft_ext {facts['nft_ext']} [{facts['nft_ext_instruction_set']}, {facts['nft_ext_compiler']}], "
        f"torch {facts['torch']} [{facts['torch_instruction_set']}], Python {facts['python']}, memory {facts['malloc']}"
    )


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory, so that no variant pays for page clearing.

    Raises:
        OSError: not glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        raise OSError("--malloc keep needs glibc; run without it") from None
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # malloc.h
    for option, value in ((trim_threshold, 1 << 30), (top_pad, 64 << 20), (mmap_threshold, 1 << 30)):
        mallopt(option, value)
