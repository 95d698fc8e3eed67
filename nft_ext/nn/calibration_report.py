"""What `calibrate` found: a table per layer."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import Any

from nft_ext._common.files import finite_or_none, write_json


@dataclass(frozen=True)
class CalibrationRow:
    """The converters of one layer. Entries of a converter that the layer does not have are None.

    Attributes:
        name: of the layer.
        input_bits, output_bits: of its DAC and its ADC.
        input_range: (low, high) of the DAC; low is 0 if no input was negative. None if each example has its own.
        input_clipping: share of the inputs outside the range, 0 .. 1.
        output_range: largest sum of the ADC, in steps.
        output_clipping: share of the sums outside the range.
        error: what the converters alone cost: relative rms error of the layer's result without noise, on ideal inputs.
        complete: whether all its ranges are known.
    """

    name: str
    input_bits: int | None
    input_range: tuple[float, float] | None
    input_clipping: float | None
    output_bits: int | None
    output_range: float | None
    output_clipping: float | None
    error: float | None
    complete: bool

    @property
    def signed(self) -> bool | None:
        """Whether the DAC's range is signed; None without a static range."""
        return None if self.input_range is None else self.input_range[0] < 0


@dataclass(frozen=True)
class Calibration:
    """The outcome of `nft_ext.calibrate`. `print` shows a table.

    Attributes:
        rows: one per layer with converters, in the order of the model.
        percentile: as given.
        noise: whether the pass ran on noisy chips.
        error: what all converters together cost: relative rms error of the model's result for the first batch, without
            noise. None if the result is zero, or has no floating-point numbers.
    """

    rows: list[CalibrationRow]
    percentile: float
    noise: bool
    error: float | None

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        rows = [{**asdict(row), "signed": row.signed} for row in self.rows]
        content = {"percentile": self.percentile, "noise": self.noise, "error": self.error, "rows": rows}
        return finite_or_none({"format": "nft_ext.calibration/1", **content})

    def to_json(self, path: str | os.PathLike | None = None) -> str:
        """`to_dict()` as JSON text, also written to a file if one is given.

        Args:
            path: the file, or None.

        Raises:
            OSError: the file cannot be written.
        """
        content = self.to_dict()
        if path is not None:
            write_json(path, content, strict=True)
        return json.dumps(content, indent=1, allow_nan=False)

    def __str__(self) -> str:
        head = ("layer", "DAC", "range", "clipped", "ADC", "range (steps)", "clipped", "error")
        lines = [head, *(_cells(row) for row in self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
        kind = "noisy" if self.noise else "clean"
        cost = f"All converters together, without noise: relative error {_share(self.error)} of the result."
        title = f"Ranges of {self.percentile:g} % of the magnitudes, from {kind} chips."
        return "\n".join([title, *table, cost])


def _cells(row: CalibrationRow) -> tuple[str, ...]:
    dynamic = row.input_bits is not None and row.input_range is None
    span = "dynamic" if dynamic and row.complete else "unknown" if dynamic else "-"
    if row.input_range is not None:
        span = f"{row.input_range[0]:.4g} .. {row.input_range[1]:.4g}"
    sums = "-" if row.output_bits is None else "unknown" if row.output_range is None else f"{row.output_range:.4g}"
    dac, adc = ("-" if bits is None else f"{bits} bits" for bits in (row.input_bits, row.output_bits))
    return row.name, dac, span, _share(row.input_clipping), adc, sums, _share(row.output_clipping), _share(row.error)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.3g} %"
