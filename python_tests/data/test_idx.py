"""The idx reader: every way in which a file can be wrong is named, with what was expected and how to get it."""

import dataclasses
import gzip
import hashlib
import re
import struct

import numpy as np
import pytest

from nft_ext.data.idx import IdxFile, read_idx

REMEDY = "Get it with: a command"
SMALL = IdxFile("small-idx3-ubyte", "a small file", (2, 3, 4), "not its md5", "")
SMALL_PIXELS = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


def idx_bytes(array, magic=None):
    header = struct.pack(f">{1 + array.ndim}I", 0x0800 | array.ndim if magic is None else magic, *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.mark.filterwarnings("ignore:.*right format")
@pytest.mark.parametrize("packed", [False, True])
def test_an_idx_file_is_read_row_by_row_packed_or_not(tmp_path, packed):
    path = tmp_path / ("small.gz" if packed else "small")
    path.write_bytes(gzip.compress(idx_bytes(SMALL_PIXELS)) if packed else idx_bytes(SMALL_PIXELS))
    np.testing.assert_array_equal(read_idx(path, SMALL, REMEDY), SMALL_PIXELS)


def test_the_gzip_bytes_may_differ_but_other_content_is_warned_about(tmp_path, recwarn):
    content = idx_bytes(SMALL_PIXELS)
    published = dataclasses.replace(SMALL, content_md5=hashlib.md5(content).hexdigest())
    for level in (1, 9):
        (tmp_path / f"{level}.gz").write_bytes(gzip.compress(content, compresslevel=level))
        read_idx(tmp_path / f"{level}.gz", published, REMEDY)
    assert not recwarn.list
    (tmp_path / "other").write_bytes(idx_bytes(SMALL_PIXELS + 1))
    with pytest.warns(UserWarning, match="other: right format, but not a small file as published"):
        read_idx(tmp_path / "other", published, REMEDY)


GOOD = idx_bytes(SMALL_PIXELS)
EXPECTED = r"must be a small file \(idx, magic number 0x00000803, 2x3x4, 40 bytes unpacked\); got "


@pytest.mark.parametrize(
    "content, found",
    [
        (b"", "only 0 bytes"),
        (GOOD[:7], "only 7 bytes"),
        (GOOD[:-1], "only 39 bytes"),
        (GOOD + b"x", "more bytes than that"),
        (idx_bytes(SMALL_PIXELS, magic=0x0D03), "magic number 0x00000d03"),
        (idx_bytes(SMALL_PIXELS[0]), "magic number 0x00000802"),
        (idx_bytes(SMALL_PIXELS[:1]), "a header that says 1x3x4"),
        (b"<!DOCTYPE html>" * 3, "magic number 0x3c21444f"),
    ],
)
def test_a_wrong_idx_file_is_named_with_what_was_expected_and_found(tmp_path, content, found):
    for path, stored in ((tmp_path / "f", content), (tmp_path / "f.gz", gzip.compress(content))):
        path.write_bytes(stored)
        with pytest.raises(ValueError, match=re.escape(f"{path}: ") + EXPECTED + re.escape(f"{found}. {REMEDY}")):
            read_idx(path, SMALL, REMEDY)


@pytest.mark.parametrize(
    "stored, found",
    [
        (GOOD, "a bad gzip file"),
        (gzip.compress(GOOD)[:-4], "a gzip file that ends too early"),
        (gzip.compress(GOOD)[:20], "a gzip file that ends too early"),
        (gzip.compress(GOOD)[:-8] + b"\0" * 8, "a bad gzip file"),
        (gzip.compress(GOOD)[:10] + b"\xff" * 20, "a bad gzip file"),
    ],
)
def test_a_damaged_gzip_file_is_named(tmp_path, stored, found):
    path = tmp_path / "f.gz"
    path.write_bytes(stored)
    with pytest.raises(ValueError, match=re.escape(f"{path}: ") + EXPECTED + found):
        read_idx(path, SMALL, REMEDY)


def test_a_missing_or_unreadable_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=EXPECTED + "no such file"):
        read_idx(tmp_path / "absent", SMALL, REMEDY)
    with pytest.raises(ValueError, match=EXPECTED + "an unreadable file"):
        read_idx(tmp_path, SMALL, REMEDY)
