"""CIFAR's pickles: read without running them; what is more than data is refused, and its file named."""

import codecs
import collections
import dataclasses
import hashlib
import os
import pickle
import pickletools
import re
import tracemalloc
import warnings

import numpy as np
import pytest

from nft_ext.data import cifar, cifar_python
from nft_ext.data.safe_pickle import PickledArray, Refused, load_pickle

COUNT = 4


def little(archive):
    splits = {split: (files, COUNT) for split, (files, _) in archive.python.splits.items()}
    return dataclasses.replace(archive, python=dataclasses.replace(archive.python, splits=splits, md5={}))


LITTLE = {"cifar10": little(cifar.CIFAR10), "cifar100": little(cifar.CIFAR100)}


def python2_pickle(pixels, labels, key):
    """The opcodes that Python 2's cPickle writes for a CIFAR file (protocol 2, text as byte strings), by hand."""

    def text(b):
        return b"U" + bytes([len(b)]) + b if len(b) < 256 else b"T" + len(b).to_bytes(4, "little") + b

    def integer(n):
        return b"K" + bytes([n]) if n < 256 else b"M" + n.to_bytes(2, "little")

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n"
        b"cnumpy\nndarray\n"
        + integer(0)
        + b"\x85"
        + text(b"b")
        + b"\x87R("
        + integer(1)
        + integer(pixels.shape[0])
        + integer(pixels.shape[1])
        + b"\x86"
        + b"cnumpy\ndtype\n"
        + text(b"u1")
        + integer(0)
        + integer(1)
        + b"\x87R("
        + integer(3)
        + text(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
        + integer(0)
        + b"tb"
        + b"\x89"
        + text(pixels.tobytes())
        + b"tb"
    )
    names = b"](" + b"".join(text(b"name_%d.png" % k) for k in range(len(labels))) + b"e"
    return (
        b"\x80\x02}("
        + text(b"batch_label")
        + text(b"a batch")
        + text(key.encode())
        + b"]("
        + b"".join(integer(n) for n in labels)
        + b"e"
        + text(b"data")
        + array
        + text(b"filenames")
        + names
        + b"u."
    )


def python3_pickle(protocol):
    return lambda pixels, labels, key: pickle.dumps(
        {b"data": pixels, key.encode(): labels, b"filenames": [b"x"]}, protocol
    )


def write(archive, root, dump=python2_pickle):
    """Random files of `archive` under `root`; returns {file name: (pixels, labels)}."""
    rng = np.random.default_rng(0)
    (root / archive.python.folder).mkdir()
    content = {}
    for files, count in archive.python.splits.values():
        for file in files:
            pixels = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
            labels = rng.integers(0, archive.label_limits[-1], count).tolist()
            content[file] = pixels, labels
            (root / archive.python.folder / file).write_bytes(dump(pixels, labels, archive.python.labels))
    return content


def test_the_hand_made_pickle_is_one():
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    pickletools.dis(python2_pickle(pixels, [1, 2], "labels"), out=open(os.devnull, "w"))
    loaded = pickle.loads(python2_pickle(pixels, [1, 2], "labels"), encoding="bytes")
    np.testing.assert_array_equal(loaded[b"data"], pixels)
    assert loaded[b"labels"] == [1, 2] and loaded[b"filenames"] == [b"name_0.png", b"name_1.png"]


@pytest.mark.parametrize("name", LITTLE)
@pytest.mark.parametrize(
    "dump", [python2_pickle, python3_pickle(2), python3_pickle(4)], ids=["Python 2", "protocol 2", "protocol 4"]
)
def test_the_python_version_reads_like_the_binary_one(tmp_path, name, dump):
    archive = LITTLE[name]
    content = write(archive, tmp_path, dump)
    for split, found in zip(("train", "test"), cifar.load(archive, tmp_path), strict=True):
        parts = [content[file] for file in archive.python.splits[split][0]]
        assert found.labels.tolist() == [label for _, labels in parts for label in labels]
        pixels = np.concatenate([p for p, _ in parts]).reshape(-1, 3, 32, 32) / 255
        expected = (pixels - np.reshape(archive.mean, (3, 1, 1))) / np.reshape(archive.std, (3, 1, 1))
        np.testing.assert_allclose(found.images.numpy(), expected, rtol=0, atol=1e-6)
        assert (found.name, found.num_classes) == (f"{name}/{split}", archive.label_limits[-1])


def test_the_binary_version_is_read_where_both_are_there(tmp_path):
    write(LITTLE["cifar10"], tmp_path)
    (tmp_path / "cifar-10-batches-bin").mkdir()
    with pytest.raises(FileNotFoundError, match="data_batch_1.bin: must be 10000 records"):
        cifar.load(LITTLE["cifar10"], tmp_path)


def test_a_file_that_is_not_the_published_one_is_named(tmp_path):
    """A changed pixel leaves a right format. Only the published digest tells."""
    archive = LITTLE["cifar10"]
    write(archive, tmp_path)
    path = tmp_path / archive.python.folder / "data_batch_3"
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    archive = dataclasses.replace(archive, python=dataclasses.replace(archive.python, md5={path.name: digest}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cifar.load(archive, tmp_path)
    changed = bytearray(path.read_bytes())
    changed[len(changed) // 2] ^= 1  # in the pixels
    path.write_bytes(changed)
    with pytest.warns(UserWarning, match=f"{re.escape(str(path))}: right format, but not the published file"):
        cifar.load(archive, tmp_path)


def test_every_published_file_has_a_digest():
    for archive in (cifar.CIFAR10, cifar.CIFAR100):
        assert {file for files, _ in archive.python.splits.values() for file in files} == set(archive.python.md5)


# ---- what is refused ----------------------------------------------------------------------------------------------


class Touch:
    """Unpickled by pickle.load, this makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_malicious_pickle_runs_nothing_and_is_named(tmp_path, protocol):
    archive = LITTLE["cifar10"]
    write(archive, tmp_path)
    path, trap = tmp_path / archive.python.folder / "data_batch_3", tmp_path / "trap"
    path.write_bytes(pickle.dumps({"data": Touch(trap)}, protocol))
    words = re.escape(f"{path}: must be a pickled dict of 4 images") + r".*got (posix|nt)\.mkdir\. Get it"
    with pytest.raises(ValueError, match=words):
        cifar.load(archive, tmp_path)
    assert not trap.exists()
    pickle.loads(path.read_bytes())
    assert trap.exists()  # the trap works


@pytest.mark.parametrize(
    "value",
    [
        print,
        os.system,
        collections.OrderedDict(),
        {1, 2},
        complex(1, 2),
        range(3),
        np.float64(1),
        np.random.default_rng(0),
        bytearray(b"x"),
    ],
    ids=lambda v: type(v).__name__,
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_nothing_but_arrays_lists_dicts_and_bytes_is_admitted(value, protocol):
    if protocol == 4 and isinstance(value, set):
        assert load_pickle(pickle.dumps(value, 4)) == value  # an opcode of its own: plain data, which no reader takes
        return
    with pytest.raises(Refused):
        found = load_pickle(pickle.dumps(value, protocol))
        found.bytes()  # a scalar needs NumPy's own function, never reached


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.",
        b"\x80\x02cnumpy\nload\nU\x01x\x85R.",
        b"\x80\x04\x8c\x05numpy\x8c\x0bf2py.system\x93.",
        b"\x80\x02Pelsewhere\n.",
        b"\x80\x02U\x01xQ.",
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00xX\x03\x00\x00\x00hex\x86R.",
    ],
)
def test_no_other_callable_is_reached(content):
    with pytest.raises(Refused):
        load_pickle(content)


def test_latin1_is_the_only_codec():
    assert load_pickle(pickle.dumps(b"\xe9\x00", 2)) == b"\xe9\x00"
    assert codecs.encode("\xe9", "latin1") == b"\xe9"


@pytest.mark.parametrize(
    "array, words",
    [
        (np.zeros((2, 3)), "unsigned bytes"),
        (np.zeros((2, 3), np.int8), "unsigned bytes"),
        (np.array([print, 1], dtype=object), "print"),
        (np.asfortranarray(np.zeros((2, 3), np.uint8)), "C order"),
    ],
)
def test_only_arrays_of_unsigned_bytes_are_made(array, words):
    with pytest.raises(Refused, match=words):
        load_pickle(pickle.dumps(array, 2)).bytes()


def test_an_array_without_contents_or_with_too_few_is_refused():
    with pytest.raises(Refused, match="without its contents"):
        PickledArray().bytes()
    whole = pickle.dumps(np.zeros((2, 300), np.uint8), 4)
    with pytest.raises(Refused, match="do not fill its shape"):
        load_pickle(whole.replace(b"M\x2c\x01", b"M\x2d\x01")).bytes()  # the shape now says 301


DAMAGE = {
    "empty": (lambda b: b"", "a damaged file"),
    "cut": (lambda b: b[:-100], "a damaged file"),
    "no pickle": (lambda b: b"\xff\xd8\xff", "a damaged file"),
    "too long": (lambda b: b + bytes(100_000), "more than"),
    "a list": (lambda b: pickle.dumps([1]), "a pickled list"),
    "no data": (lambda b: pickle.dumps({b"labels": [1]}), "no array 'data' in it"),
    "no labels": (lambda b: pickle.dumps({b"data": np.zeros((4, 3072), np.uint8)}), "no list 'labels' in it"),
    "fewer images": (
        lambda b: pickle.dumps({b"data": np.zeros((3, 3072), np.uint8), b"labels": [1] * 4}),
        r"data of shape \[3, 3072\]",
    ),
    "fewer labels": (lambda b: pickle.dumps({b"data": np.zeros((4, 3072), np.uint8), b"labels": [1] * 3}), "3 labels"),
    "label 10": (
        lambda b: pickle.dumps({b"data": np.zeros((4, 3072), np.uint8), b"labels": [1, 2, 10, 3]}),
        "label 10 at index 2",
    ),
    "a label of 30,000 digits": (
        lambda b: pickle.dumps({b"data": np.zeros((4, 3072), np.uint8), b"labels": [1, 1, 1, 10**30000]}),
        "label int at index 3",
    ),
    "label x": (
        lambda b: pickle.dumps({b"data": np.zeros((4, 3072), np.uint8), b"labels": [1, "x", 0, 3]}),
        "label 'x' at index 1",
    ),
}


LARGE = {
    "a memo slot": b"\x80\x02Nr\xff\xff\xff\x0f.",  # nine bytes; the memo would take four gigabytes
    "a memo slot as text": b"Np1000000000\n.",
    "a byte array": b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b".",
    "a text": b"\x80\x04X\xff\xff\xff\xffab.",
    "a frame": b"\x80\x04\x95" + (1 << 40).to_bytes(8, "little") + b"N.",
    "tuples as a key": b"\x80\x02}N" + b"\x85" * 1_000_000 + b"Ns.",  # their hash would overflow the stack
    "one text again and again": b"c_codecs\nencode\nq\x00X\x00\x00\x01\x00"
    + b"a" * (1 << 16)
    + b"q\x01X\x06\x00\x00\x00latin1q\x02"
    + b"h\x00h\x01h\x02\x86R" * 3000
    + b".",
}


@pytest.mark.parametrize("name", LARGE)
def test_a_pickle_takes_no_more_memory_than_its_size_allows(name):
    content = LARGE[name]
    tracemalloc.start()
    try:
        with pytest.raises(ValueError):
            load_pickle(content)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(content) + (1 << 20)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_pickle_is_named(tmp_path, damage):
    archive = LITTLE["cifar10"]
    write(archive, tmp_path)
    path = tmp_path / archive.python.folder / "test_batch"
    change, words = DAMAGE[damage]
    path.write_bytes(change(path.read_bytes()))
    words = re.escape(f"{path}: must be a pickled dict") + f".*; got {words}.*nft-ext fetch cifar10"
    with pytest.raises(ValueError, match=words):
        cifar.load(archive, tmp_path)


def test_a_missing_pickle_is_named(tmp_path):
    archive = LITTLE["cifar100"]
    write(archive, tmp_path)
    (tmp_path / archive.python.folder / "test").unlink()
    with pytest.raises(FileNotFoundError, match="test: must be cifar100's Python version, 4 images; got no such file"):
        cifar.load(archive, tmp_path)


def test_the_real_images_read_the_same_from_pickles(tmp_path):
    """Real CIFAR-100 test images, written as Python's pickle writes them, against the binary reader."""
    root = os.environ.get("NFT_EXT_DATA")
    if not root or not os.path.isfile(os.path.join(root, "cifar-100-binary", "test.bin")):
        pytest.skip("NFT_EXT_DATA names no folder with cifar-100-binary/test.bin")
    records = np.fromfile(os.path.join(root, "cifar-100-binary", "test.bin"), np.uint8).reshape(10000, 3074)
    content = {
        b"data": np.ascontiguousarray(records[:, 2:]),
        b"fine_labels": records[:, 1].tolist(),
        b"coarse_labels": records[:, 0].tolist(),
        b"filenames": [b"a_file_name_of_usual_length_%06d.png" % k for k in range(10000)],
    }
    (tmp_path / "test").write_bytes(pickle.dumps(content, 2))
    pixels, labels = cifar_python.read_batch(tmp_path / "test", "fine_labels", 10000, 100, "")
    np.testing.assert_array_equal(pixels.reshape(10000, 3072), records[:, 2:])
    np.testing.assert_array_equal(labels, records[:, 1])
