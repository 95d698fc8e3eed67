"""The coverage of a model as a whole: its shares, its rows, its JSON."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from typing import Any

from nft_ext._common.checks import fail
from nft_ext._common.coverage_line import coverage_line
from nft_ext._common.files import finite_or_none, write_json
from nft_ext.nn.coverage.groups import Group, grouped
from nft_ext.nn.coverage.rows import CROSSBAR, DIGITAL, Row
from nft_ext.nn.coverage.text import coverage_table

FORMAT = "nft_ext.coverage/1"
_STORED = ("name", "count", "module", "shape", "cells", "macs", "reason")  # of a group, in a summary


@dataclass(frozen=True)
class Coverage:
    """The outcome of `nft_ext.coverage`. `print` shows a table.

    Attributes:
        rows: one per parameter of two or more dimensions, in the order of the modules. The table below has the
            attributes of a row.
        planned: whether the model is plain, so that the rows say what `convert` would do.
        with_example: whether a forward was observed.

    =============  =====================================================================================
    of a row       what it is
    =============  =====================================================================================
    name, module   qualified name of the parameter; class of its module
    shape, cells   shape; number of weights
    place          "crossbar" or "digital"
    reason         why it is digital or not counted, or who else reads it; else None
    counted        whether it is a matrix that multiplies activations
    judged         how `counted` was found: "class", "shape and name" or "forward"
    crossbars      number of crossbars: one per group or expert
    crossbar       (inputs, outputs) of one crossbar
    arrays         number of arrays, if the device has `array_rows` or `array_columns`
    array_use      share of the arrays' cells that hold a weight
    ran            whether a forward of the example read it as a crossbar
    macs           multiply-accumulates in the example; noisy_macs: those on a crossbar
    weight_share   share of all counted weights; mac_share: of all multiply-accumulates
    =============  =====================================================================================
    """

    rows: list[Row]
    planned: bool
    with_example: bool

    @property
    def share(self) -> float:
        """Crossbar weights / weights of matrices that multiply activations, 0 .. 1; NaN without such a matrix."""
        return _ratio(self.cells(CROSSBAR), self.cells())

    @property
    def mac_share(self) -> float | None:
        """Multiply-accumulates on crossbars / those of all such matrices, 0 .. 1.

        Products of two activations, as in attention scores, do not count. NaN if no matrix was multiplied. None without
        an example, or if a matrix could not be observed (quantized, scripted or sharded ones).
        """
        counted = [row for row in self.rows if row.counted]
        if not self.with_example or any(row.macs is None for row in counted):
            return None
        return _ratio(sum(row.noisy_macs or 0 for row in counted), sum(row.macs or 0 for row in counted))

    def cells(self, place: str | None = None) -> int:
        """Number of weights of the counted matrices.

        Args:
            place: "crossbar", "digital", or None for both.

        Raises:
            ValueError: another place.
        """
        if place not in (None, CROSSBAR, DIGITAL):
            fail("place", f"must be None, {CROSSBAR!r} or {DIGITAL!r}", place)
        return sum(row.cells for row in self.rows if row.counted and place in (None, row.place))

    @property
    def digital(self) -> list[Row]:
        """The counted matrices that are on no crossbar, the biggest first."""
        found = [row for row in self.rows if row.counted and row.place == DIGITAL]
        return sorted(found, key=lambda row: -row.cells)

    @property
    def exceptions(self) -> list[Group]:
        """`digital` with repeated layers together, the biggest group first."""
        return grouped(self.digital)

    def line(self, most: int = 3) -> str:
        """One line: the shares, and the biggest digital matrices if there are any.

        Args:
            most: number of groups of digital matrices to name.
        """
        return coverage_line(self.summary(most), most)

    def summary(self, most: int = 6) -> dict[str, Any]:
        """What reports store: the shares, the weights, and the biggest digital matrices, as JSON values.

        Args:
            most: number of groups of digital matrices to list.
        """
        groups = self.exceptions
        return finite_or_none(
            {
                "share": self.share,
                "mac_share": self.mac_share,
                "crossbar_weights": self.cells(CROSSBAR),
                "weights": self.cells(),
                "digital": [{name: getattr(group, name) for name in _STORED} for group in groups[:most]],
                "sizes_unknown": sum(not row.cells for row in self.digital),
                "digital_not_listed": sum(group.count for group in groups[most:]),
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """The whole coverage as JSON values; NaN as None."""
        content = {"format": FORMAT, "planned": self.planned, "with_example": self.with_example}
        return finite_or_none({**content, **self.summary(), "rows": [asdict(row) for row in self.rows]})

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
        return coverage_table(self)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
