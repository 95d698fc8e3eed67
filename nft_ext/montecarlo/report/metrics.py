"""The statistics of a report by the names of its metrics."""

from __future__ import annotations

from typing import NoReturn, TypeVar

from nft_ext._common.checks import fail

Statistic = TypeVar("Statistic")


class Metrics(dict[str, Statistic]):
    """Metric name -> its statistic, in the order asked for. A missing name is an error that lists the others."""

    def __missing__(self, name: str) -> NoReturn:
        fail("metrics", f"must be one of {', '.join(self)}, the metrics of this report", repr(name), kind=KeyError)
