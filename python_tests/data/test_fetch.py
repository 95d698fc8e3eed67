"""Fetching, against a server on this machine: whole files only, resumed, checked; archives never leave their folder."""

import contextlib
import dataclasses
import gzip
import hashlib
import http.server
import importlib
import io
import socket
import tarfile
import threading
import zipfile

import numpy as np
import pytest

from nft_ext import data
from nft_ext.cli import main
from nft_ext.data import cifar, mnist, tinyimagenet
from nft_ext.data.download import Remote, download
from nft_ext.data.unpack import unpack

fetch_module = importlib.import_module("nft_ext.data.fetch")  # `nft_ext.data.fetch` is the function

CONTENT = np.random.default_rng(0).integers(0, 256, 600_000, dtype=np.uint8).tobytes()  # three blocks
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server:
    """Serves `files` with ranges; `faults[path]` is a list of what to do instead at the next requests.

    A fault is an HTTP status, ("cut", n): n bytes of the body and then the end, or ("whole",): the range is ignored.
    """

    def __init__(self):
        self.files, self.faults, self.seen = {}, {}, []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.seen.append((self.path, self.headers.get("Range")))
                queue = outer.faults.get(self.path, [])
                fault = queue.pop(0) if queue else None
                body = outer.files.get(self.path)
                if isinstance(fault, int) or body is None:
                    self.send_error(fault if isinstance(fault, int) else 404)
                    return
                start = 0
                if self.headers.get("Range") and fault != ("whole",):
                    start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
                    if start >= len(body):
                        self.send_error(416)
                        return
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(body) - start))
                self.end_headers()
                end = start + fault[1] if fault is not None and fault[0] == "cut" else len(body)
                self.wfile.write(body[start:end])

            def log_message(self, *arguments):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = Server()
    yield running
    running.http.shutdown()
    running.http.server_close()


def remote(server, *paths, **changes):
    return Remote(
        **{"name": "file.bin", "urls": tuple(server.url + p for p in paths), "md5": MD5, "checksum_from": "this test"}
        | changes
    )


def get(remote, target):
    return download(remote, target, pause=0.001, progress=False)


# ---- one file -----------------------------------------------------------------------------------------------------


def test_a_file_comes_whole_and_is_not_fetched_twice(server, tmp_path):
    server.files["/a"] = CONTENT
    target = tmp_path / "file.bin"
    assert get(remote(server, "/a"), target) is True
    assert target.read_bytes() == CONTENT and list(tmp_path.iterdir()) == [target]
    assert get(remote(server, "/a"), target) is False and len(server.seen) == 1


def test_a_damaged_file_already_there_is_replaced(server, tmp_path):
    server.files["/a"] = CONTENT
    (tmp_path / "file.bin").write_bytes(CONTENT[:-1])
    assert get(remote(server, "/a"), tmp_path / "file.bin") and (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
    server.files["/a"] = b"<html>log in first</html>"
    words = rf"file.bin: must be downloaded.*/a: 25 bytes with md5 \w+ instead of {MD5}.*this test"
    with pytest.raises(ValueError, match=words):
        get(remote(server, "/a"), tmp_path / "file.bin")
    assert list(tmp_path.iterdir()) == []


def test_an_end_too_early_is_continued_where_it_was(server, tmp_path):
    server.files["/a"] = CONTENT
    server.faults["/a"] = [("cut", 100_000), 503, ("cut", 400_000)]
    assert get(remote(server, "/a"), tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert [r for _, r in server.seen] == [None, "bytes=100000-", "bytes=100000-", "bytes=500000-"]


def test_a_download_given_up_is_continued_by_the_next_call(server, tmp_path):
    server.files["/a"] = CONTENT
    server.faults["/a"] = [("cut", 50_000)] * 4
    words = r"it ended after 200000 of 600000 bytes \(4 attempts\).*file.bin.part keeps the received bytes"
    with pytest.raises(ConnectionError, match=words):
        get(remote(server, "/a"), tmp_path / "file.bin")
    assert not (tmp_path / "file.bin").exists() and (tmp_path / "file.bin.part").stat().st_size == 200_000
    assert get(remote(server, "/a"), tmp_path / "file.bin")
    assert server.seen[-1] == ("/a", "bytes=200000-") and (tmp_path / "file.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("part", [b"another file's beginning", CONTENT + b"more", CONTENT[:-1] + b"x"])
def test_a_part_of_another_file_is_dropped(server, tmp_path, part):
    server.files["/a"] = CONTENT
    (tmp_path / "file.bin.part").write_bytes(part)
    assert get(remote(server, "/a"), tmp_path / "file.bin") and (tmp_path / "file.bin").read_bytes() == CONTENT
    assert not (tmp_path / "file.bin.part").exists()


def test_a_whole_part_only_takes_its_name(server, tmp_path):
    server.files["/a"] = CONTENT
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    assert get(remote(server, "/a"), tmp_path / "file.bin") and len(server.seen) == 1


def test_a_server_without_ranges_begins_again(server, tmp_path):
    server.files["/a"] = CONTENT
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    server.faults["/a"] = [("whole",)]
    assert get(remote(server, "/a"), tmp_path / "file.bin") and (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_404_is_final_and_the_next_address_is_tried(server, tmp_path):
    server.files["/b"] = CONTENT
    assert get(remote(server, "/a", "/b"), tmp_path / "file.bin")
    assert [p for p, _ in server.seen] == ["/a", "/b"]
    with pytest.raises(ConnectionError, match=r"/a: HTTP error 404 \(Not Found\); http.*/c: HTTP error 404"):
        get(remote(server, "/a", "/c"), tmp_path / "other.bin")


def test_no_network_says_so_and_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/a"
        words = rf"no connection .*is there a network.*md5 {MD5}.* at .*file.bin"
        with pytest.raises(ConnectionError, match=words):
            get(Remote("file.bin", (url,), MD5, "this test"), tmp_path / "file.bin")


def test_more_than_the_file_has_is_not_kept(server, tmp_path):
    server.files["/a"] = CONTENT
    with pytest.raises(ValueError, match="more than the 300000 bytes that the file has"):
        get(remote(server, "/a", bytes=300_000), tmp_path / "file.bin")
    assert list(tmp_path.iterdir()) == []


# ---- archives -----------------------------------------------------------------------------------------------------


def tar(path, members, mode="w:gz"):
    with tarfile.open(path, mode) as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
            else:  # (type, target of the link)
                info.type, info.linkname = content
                file.addfile(info)


def zipped(path, members):
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            if not isinstance(content, bytes):
                info.external_attr, content = 0o120777 << 16, content[1].encode()  # a symbolic link
            file.writestr(info, content)


GOOD = [("d/one", b"1"), ("d/two", b"22")]
EVIL = [
    ("../evil", b"x"),
    ("/tmp/nft_ext_evil", b"x"),
    ("d/../../evil", b"x"),
    ("d\\..\\evil", b"x"),
    ("C:evil", b"x"),
    ("d/link", (tarfile.SYMTYPE, "/etc/passwd")),
]


@pytest.mark.parametrize("write, name", [(tar, "a.tar.gz"), (zipped, "a.zip")])
def test_only_wanted_members_are_unpacked_and_none_outside(tmp_path, write, name):
    folder = tmp_path / "data"
    folder.mkdir()
    one = "./d/one" if name.endswith("gz") else "d/one"
    write(folder / name, EVIL + [(one, b"1"), ("d/readme", b"no"), ("d/two", b"22")])
    asked = []
    unpack(folder / name, folder, lambda n, size: asked.append(n) or n in ("d/one", "d/two"), 2, False)
    assert asked == ["d/one", "d/readme", "d/two"]
    there = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert there == {f"data/{name}", "data/d/one", "data/d/two"}
    assert (folder / "d/two").read_bytes() == b"22"


@pytest.mark.parametrize("write, name", [(tar, "a.tar.gz"), (zipped, "a.zip")])
@pytest.mark.parametrize(
    "wanted, count, words",
    [
        (lambda n, size: True, 3, "must hold 3 files of the data set; got 2"),
        (lambda n, size: True, 1, "must hold 1 different files of the data set; got another d/two"),
    ],
)
def test_other_than_the_expected_members_leave_nothing(tmp_path, write, name, wanted, count, words):
    write(tmp_path / name, GOOD)
    with pytest.raises(ValueError, match=words):
        unpack(tmp_path / name, tmp_path, wanted, count, False)
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("write, name", [(tar, "a.tar.gz"), (zipped, "a.zip")])
def test_a_member_twice_is_refused(tmp_path, write, name):
    write(tmp_path / name, GOOD + [("d/one", b"other")])
    with pytest.raises(ValueError, match="different files of the data set; got another d/one"):
        unpack(tmp_path / name, tmp_path, lambda n, size: True, 3, False)


@pytest.mark.parametrize("name", ["a.tar.gz", "a.zip"])
def test_a_damaged_archive_is_named(tmp_path, name):
    big = [("d/one", np.random.default_rng(0).bytes(50_000)), ("d/two", b"2")]
    (tar if name.endswith("gz") else zipped)(tmp_path / name, big)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:20_000])
    with pytest.raises(ValueError, match=f"{name}: must be a complete archive"):
        unpack(tmp_path / name, tmp_path, lambda n, size: True, 2, False)
    assert [p.name for p in tmp_path.iterdir()] == [name]


# ---- data sets ----------------------------------------------------------------------------------------------------


@pytest.fixture
def little(server, tmp_path, monkeypatch):
    """Small MNIST, CIFAR-10 and Tiny ImageNet on the server; their true sources replaced."""
    rng = np.random.default_rng(1)
    files = {}
    for split, published in mnist.FILES.items():
        part = []
        for file in published:
            shape = (6, *file.shape[1:])
            array = rng.integers(0, 10, shape, dtype=np.uint8)
            header = [0x0800 | array.ndim, *shape]
            raw = b"".join(n.to_bytes(4, "big") for n in header) + array.tobytes()
            server.files[f"/{file.name}.gz"] = packed = gzip.compress(raw)
            part.append(
                dataclasses.replace(
                    file,
                    shape=shape,
                    content_md5=hashlib.md5(raw).hexdigest(),
                    gzip_md5=hashlib.md5(packed).hexdigest(),
                )
            )
        files[split] = tuple(part)
    monkeypatch.setattr(mnist, "FILES", files)
    monkeypatch.setattr(fetch_module, "MNIST_MIRRORS", (server.url + "/nowhere", server.url))

    archive = dataclasses.replace(cifar.CIFAR10, splits={k: (f, 2) for k, (f, _) in cifar.CIFAR10.splits.items()})
    members = [
        (f"{archive.folder}/{file}", rng.integers(0, 10, 2 * 3073, dtype=np.uint8).tobytes())
        for names, _ in archive.splits.values()
        for file in names
    ]
    tar(tmp_path / archive.tar, [*members, (f"{archive.folder}/readme.html", b"hello"), ("../evil", b"x")])
    archive = dataclasses.replace(archive, tar_md5=serve(server, tmp_path / archive.tar))
    monkeypatch.setattr(cifar, "CIFAR10", archive)
    monkeypatch.setattr(fetch_module, "TORONTO", (server.url,))

    monkeypatch.setattr(tinyimagenet, "TREE", tinyimagenet.Tree(classes=1, per_class=1, test=1))
    root = tinyimagenet.FOLDER
    zipped(
        tmp_path / tinyimagenet.ZIP,
        [
            (f"{root}/wnids.txt", b"n00000001\n"),
            (f"{root}/val/val_annotations.txt", b"val_0.JPEG\tn00000001\t0\t0\t1\t1\n"),
            (f"{root}/val/images/val_0.JPEG", b"j"),
            (f"{root}/train/n00000001/images/n00000001_0.JPEG", b"j"),
            (f"{root}/train/n00000001/n00000001_boxes.txt", b"not wanted"),
            (f"{root}/test/images/test_0.JPEG", b"not wanted"),
        ],
    )
    monkeypatch.setattr(tinyimagenet, "ZIP_MD5", serve(server, tmp_path / tinyimagenet.ZIP))
    monkeypatch.setattr(tinyimagenet, "URL", f"{server.url}/{tinyimagenet.ZIP}")
    sources = {
        "mnist": fetch_module._mnist(),
        "cifar10": fetch_module._cifar(archive),
        "tinyimagenet": fetch_module._tinyimagenet(),
    }
    monkeypatch.setattr(fetch_module, "SOURCES", sources)
    return tmp_path / "data"


def serve(server, path):
    """Puts a file on the server, takes it from the disk, and gives its md5."""
    server.files[f"/{path.name}"] = path.read_bytes()
    path.unlink()
    return hashlib.md5(server.files[f"/{path.name}"]).hexdigest()


@pytest.mark.parametrize("name", ["mnist", "cifar10", "tinyimagenet"])
def test_a_data_set_is_fetched_once_and_then_there(little, server, name):
    assert data.fetch(name, little, pause=0.001, progress=False) is True
    seen = len(server.seen)
    assert data.fetch(name, little, pause=0.001, progress=False) is False and len(server.seen) == seen
    names = {str(p.relative_to(little)) for p in little.rglob("*") if p.is_file()}
    assert not any(n.endswith((".part", ".tar.gz", ".zip")) for n in names)
    assert not any(word in n for word in ("readme", "boxes", "test_0") for n in names)
    assert len(names) == {"mnist": 4, "cifar10": 6, "tinyimagenet": 4}[name]
    if name != "tinyimagenet":  # whose stand-ins are no images
        train, test = data.load(name, little) if name == "mnist" else cifar.load(cifar.CIFAR10, little)
        assert (len(train), len(test)) == {"mnist": (6, 6), "cifar10": (10, 2)}[name]


def test_only_what_is_missing_comes_again(little, server):
    data.fetch("mnist", little, pause=0.001, progress=False)
    path = little / "MNIST" / "raw" / "train-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-3])
    before = len(server.seen)
    assert data.fetch("mnist", little, pause=0.001, progress=False)
    assert {p for p, _ in server.seen[before:]} == {
        "/nowhere/train-labels-idx1-ubyte.gz",
        "/train-labels-idx1-ubyte.gz",
    }


def test_a_damaged_file_that_comes_first_is_named(little):
    (little / "MNIST" / "raw").mkdir(parents=True)
    (little / "MNIST" / "raw" / "train-labels-idx1-ubyte").write_bytes(b"damaged, and read before the .gz")
    with pytest.raises(ValueError, match="MNIST/raw: must hold mnist now; got another file that is read first"):
        data.fetch("mnist", little, pause=0.001, progress=False)


def test_the_command(little, server, capsys, monkeypatch):
    assert main(["fetch", "cifar10", "--data-dir", str(little)]) == 0
    assert "cifar10: downloaded, checksum correct" in capsys.readouterr().out
    monkeypatch.setenv("NFT_EXT_DATA", str(little))
    assert main(["fetch", "cifar10"]) == 0 and "already there" in capsys.readouterr().out
    server.files.clear()
    assert main(["fetch", "mnist"]) == 1
    assert "nft-ext fetch: train-images-idx3-ubyte.gz: must be downloaded" in capsys.readouterr().err


def test_bad_arguments_are_refused(monkeypatch):
    monkeypatch.delenv("NFT_EXT_DATA", raising=False)
    with pytest.raises(ValueError, match=r"dataset: must be one of mnist, cifar10, .*imagenet \(digits come with"):
        data.fetch("digits")
    with pytest.raises(ValueError, match="data_dir: must name the folder for mnist, or .* NFT_EXT_DATA"):
        data.fetch("mnist")


def test_every_source_has_addresses_and_a_checksum():
    for name, source in fetch_module.SOURCES.items():
        for file in source.remotes:
            assert len(file.md5) == 32 and int(file.md5, 16) and file.checksum_from
            assert all(url.startswith("http") and url.endswith(file.name) for url in file.urls), name


# ---- torchvision --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def torchvision(monkeypatch, **classes):
    import types

    module = types.ModuleType("torchvision")
    module.datasets = types.SimpleNamespace(**classes)
    monkeypatch.setitem(__import__("sys").modules, "torchvision", module)
    yield


class CIFAR10:
    """Stands in for torchvision's: the same attributes."""

    def __init__(self, root, train, download):
        assert download is False
        rng = np.random.default_rng(int(train))
        self.data = rng.integers(0, 256, (4 if train else 2, 32, 32, 3), dtype=np.uint8)
        self.targets = [1, 2, 3, 4] if train else [5, 6]


class MNIST:
    def __init__(self, root, train, download):
        raise RuntimeError("Dataset not found. You can use download=True to download it")


def test_torchvision_is_asked_where_our_readers_find_nothing(tmp_path, monkeypatch):
    with torchvision(monkeypatch, CIFAR10=CIFAR10, MNIST=MNIST):
        train, test = data.load("cifar10", tmp_path)
        assert (train.name, test.name, test.labels.tolist()) == ("cifar10/train", "cifar10/test", [5, 6])
        pixels = CIFAR10(None, True, False).data.transpose(0, 3, 1, 2) / 255
        expected = (pixels - np.reshape(train.mean, (3, 1, 1))) / np.reshape(train.std, (3, 1, 1))
        np.testing.assert_allclose(train.images.numpy(), expected, rtol=0, atol=1e-6)
        with pytest.raises(FileNotFoundError, match="nft-ext fetch mnist"):  # ours, where it has nothing either
            data.load("mnist", tmp_path)
    with pytest.raises(TypeError, match="dataset: must be torchvision's MNIST, CIFAR10, CIFAR100; got list"):
        data.from_torchvision([])


def test_without_torchvision_our_own_error_stands(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchvision", None)
    with pytest.raises(FileNotFoundError, match="nft-ext fetch cifar10"):
        data.load("cifar10", tmp_path)
