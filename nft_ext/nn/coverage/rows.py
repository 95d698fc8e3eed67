"""The rows of a coverage table: one per parameter, with its place and the reason."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from nft_ext.nn.coverage.parameters import BIAS, EMBEDDING, MATRIX, Held, crossbars_of, weight_of
from nft_ext.nn.coverage.products import Reads
from nft_ext.nn.noise_free import multiplies

CROSSBAR, DIGITAL = "crossbar", "digital"
EXCLUDED, NOT_CALLED = "excluded", "its layer is not called: the weight is read past it"

_WAYS = {"lookup": EMBEDDING, "input": "learned input of a layer", "element": "added or scaled by element"}


@dataclass(frozen=True)
class Row:
    """One parameter of two or more dimensions.

    Attributes:
        name: qualified name of the parameter.
        module: class of the module that holds it.
        shape: its shape; empty where a quantized layer does not tell it.
        cells: number of weights.
        place: "crossbar" or "digital".
        counted: whether it is a matrix that multiplies activations. The other rows are listed only.
        reason: why it is digital, or what to know about a crossbar. None if there is nothing to say.
        judged: how `counted` was found: "class", "shape and name", or "forward" where the example showed it.
        crossbars: number of crossbars, one per group or expert; None without any.
        crossbar: (inputs, outputs) of one crossbar; None without any.
        arrays: number of arrays that hold it; None without array_rows and array_columns in the device model.
        array_use: share of the cells of these arrays that hold a weight, 0 .. 1; None where `arrays` is.
        ran: whether a forward read it as a crossbar; None if unknown.
        macs: multiply-accumulates with it in a forward of the example, with and without noise; None if unknown.
        noisy_macs: those on the crossbar.
        weight_share: its part of the weights of all counted rows; None for the others.
        mac_share: its part of the multiply-accumulates of all counted rows; None for the others or without an example.
    """

    name: str
    module: str
    shape: tuple[int, ...]
    cells: int
    place: str
    counted: bool
    reason: str | None
    judged: str
    crossbars: int | None = None
    crossbar: tuple[int, int] | None = None
    arrays: int | None = None
    array_use: float | None = None
    ran: bool | None = None
    macs: int | None = None
    noisy_macs: int | None = None
    weight_share: float | None = None
    mac_share: float | None = None


def row_of(held: Held, reads: Reads | None, planned: bool) -> Row:
    """The row of a parameter.

    Args:
        held: the parameter.
        reads: how a forward read it; None if unknown.
        planned: the model is plain, and the row says what `convert` would do.
    """
    on_crossbar = held.obstacle is None and (held.convertible if planned else held.noisy)
    counted, judged, reason = _counted(held, reads)
    noisy_macs = None
    if on_crossbar:
        reason = "also read by " + ", ".join(others) if (others := _others(held)) else None
        if reads is not None:
            noisy_macs = reads.layer_macs if planned else reads.noisy_macs
            if reads.macs and not noisy_macs:
                on_crossbar, reason = False, NOT_CALLED
            elif reads.macs > noisy_macs:
                reason = "also read past its layer, without noise"
            elif not reads.macs:
                reason = "did not run in the example"
    elif counted:
        reason = _why_digital(held, planned)
    row = Row(
        name=held.name,
        module=held.kind,
        shape=held.shape,
        cells=held.cells,
        place=CROSSBAR if on_crossbar else DIGITAL,
        counted=counted,
        reason=reason,
        judged=judged,
        ran=None if reads is None else on_crossbar and bool(noisy_macs),
        macs=None if reads is None else reads.macs,
        noisy_macs=None if reads is None else (noisy_macs or 0) if on_crossbar else 0,
    )
    return _with_crossbars(row, held) if on_crossbar else row


def _counted(held: Held, reads: Reads | None) -> tuple[bool, str, str | None]:
    """Whether the parameter multiplies activations as a matrix, how that was found, and what it is if it does not."""
    reason = None if held.role == MATRIX else held.role
    if reads is not None and not (held.role == MATRIX and held.certain):
        if "product" in reads.ways:
            return True, "forward", None
        if reads.ways and "other" not in reads.ways:
            shown = next(text for way, text in _WAYS.items() if way in reads.ways)
            return False, "forward", reason or shown
    return held.role == MATRIX, "class" if held.certain else "shape and name", reason


def _why_digital(held: Held, planned: bool) -> str:
    if held.obstacle is not None:
        return held.obstacle
    if held.convertible:
        return "a plain layer" if planned else EXCLUDED
    if held.role not in (MATRIX, BIAS):
        return f"{held.role}, also multiplied as a matrix"
    if not multiplies(held.module):
        return "unknown class"
    return "its forward does not read this weight"


def _others(held: Held) -> list[str]:
    others = [place for place in held.places[1:] if f"{place[0]}.{place[1]}" != held.name]
    return [f"{name or 'the model'} ({type(module).__name__})" for name, _, module in others]


def _with_crossbars(row: Row, held: Held) -> Row:
    """The row with the size of its crossbars. Kernel dimensions belong to the inputs."""
    _, key, module = held.places[0]
    layout, groups = crossbars_of(module)[weight_of(key, module)[0]]
    shape, number = held.shape, groups
    if layout.startswith("e"):
        number, shape, layout = shape[0], shape[1:], layout[1:]
    if layout == "oi":
        outputs, inputs = shape[0] // groups, math.prod(shape[1:])
    else:
        outputs, inputs = shape[1], shape[0] // groups * math.prod(shape[2:])
    row = replace(row, crossbars=number, crossbar=(inputs, outputs))
    nvm = getattr(module, "nvm", None)  # of a noisy layer
    if nvm is None or nvm.array_rows is nvm.array_columns is None:
        return row
    rows, columns = nvm.array_rows or inputs, nvm.array_columns or outputs
    arrays = number * math.ceil(inputs / rows) * math.ceil(outputs / columns)
    return replace(row, arrays=arrays, array_use=number * inputs * outputs / (arrays * rows * columns))
