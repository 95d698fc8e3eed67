"""The warning of `convert` about matrices that stay digital, unless the user chose so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from torch import nn

from nft_ext._common.coverage_line import exceptions, shares
from nft_ext.nn.coverage.groups import grouped
from nft_ext.nn.coverage.parameters import held_by
from nft_ext.nn.coverage.rows import EXCLUDED, NOT_CALLED
from nft_ext.nn.coverage.table import Coverage

_NAMED = 3  # groups in the line
# What to do, by the beginning of the reason.
_HINTS = {
    "parametrized": "call torch.nn.utils.parametrize.remove_parametrizations, then convert again",
    "in a plain list": "hold modules in nn.ModuleList or nn.ModuleDict",
    "quantized": "convert before quantizing",
    "scripted": "convert before scripting",
    "unknown class": "nft_ext.register_crossbar puts a class of your own onto crossbars",
}


def left_digital(
    coverage: Coverage, model: nn.Module, asked_for: Callable[[str, nn.Module], bool] | None
) -> str | None:
    """The line that names the biggest digital matrices; None if the user chose all of them, or there are none.

    Args:
        coverage: of the converted model.
        model: the converted model.
        asked_for: whether the user asked for a module, given its name; None if for all.
    """
    modules = {held.name: (held.places[0][0], held.module) for held in held_by(model)}
    # Noisy layers that are not called have a warning of their own, with what the forward showed.
    found = [row for row in coverage.digital if row.reason not in (EXCLUDED, NOT_CALLED)]
    if asked_for is not None:
        found = [row for row in found if asked_for(*modules[row.name])]
    if not found:
        return None
    groups = grouped(found)
    left = len(found) - sum(group.count for group in groups[:_NAMED])
    text = shares(coverage.summary()) + exceptions([asdict(group) for group in groups[:_NAMED]], left, _NAMED)
    if others := len(coverage.digital) - len(found) - sum(row.reason == NOT_CALLED for row in coverage.digital):
        text += f"; include and exclude left out {others} more"
    hints = [hint for start, hint in _HINTS.items() if any((row.reason or "").startswith(start) for row in found)]
    if any(row.judged == "shape and name" for row in found):
        hints.append("example= shows what is really multiplied")
    return "; ".join([text, *hints])
