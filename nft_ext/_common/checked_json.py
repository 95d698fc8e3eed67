"""JSON files with a checksum, so that a changed digit is an error and not another result."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

ENTRY = "crc"  # CRC-32 of the other entries


def with_checksum(content: Mapping[str, Any]) -> dict[str, Any]:
    """`content`, JSON-able and without NaN, with its checksum as the last entry."""
    return {**content, ENTRY: _checksum(content)}


def intact(content: Mapping[str, Any]) -> bool:
    """Whether the content, as JSON returns it, has its checksum. Without one it comes from an earlier version."""
    others = {name: value for name, value in content.items() if name != ENTRY}
    return ENTRY not in content or content[ENTRY] == _checksum(others)


def _checksum(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return format(zlib.crc32(text.encode()), "08x")
