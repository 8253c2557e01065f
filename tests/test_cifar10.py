"""normbook.data.cifar10, on an archive in its format made here: the real one is not on the machines that test."""

import hashlib
import http.server
import io
import pickle
import tarfile
import threading

import numpy as np
import pytest
from torchvision.datasets import CIFAR10

from normbook import data
from normbook.data import cifar10
from normbook.errors import InputError

NAMES = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]
CLASSES = [f"class {i}" for i in range(10)]


def md5(content):
    return hashlib.md5(content).hexdigest()


def batch(number):
    """One file of the archive: 20 images of 32x32 pixels, two a class; the first pixel says which, the second whose."""
    pixels = np.random.default_rng(number).integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)
    labels = np.random.default_rng(number).permutation(np.arange(20) % 10)
    pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = number * 20 + np.arange(20), labels
    return pickle.dumps({"data": pixels.reshape(20, -1), "labels": labels.tolist()}, protocol=2)


def packed(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def files(monkeypatch, decoded):
    """The files of a small CIFAR-10, whose md5 torchvision expects."""
    found = {name: batch(i) for i, name in enumerate(NAMES)}
    found["batches.meta"] = pickle.dumps({"label_names": CLASSES}, protocol=2)
    listed = [[name, md5(found[name])] for name in NAMES]
    monkeypatch.setattr(CIFAR10, "train_list", listed[:5])
    monkeypatch.setattr(CIFAR10, "test_list", listed[5:])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5(found["batches.meta"])})
    return found


@pytest.fixture
def archive(tmp_path, files, monkeypatch):
    (tmp_path / "data").mkdir()
    path = packed(tmp_path / "data" / cifar10.ARCHIVE, files)
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(path.read_bytes()))
    return path


@pytest.fixture
def server(archive, monkeypatch):
    """A server of the archive, in place of the real one; the paths that were asked for."""
    content, asked = archive.read_bytes(), []
    archive.unlink()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{running.server_port}/{cifar10.ARCHIVE}")
        thread = threading.Thread(target=running.serve_forever, args=(0.05,))
        thread.start()
        yield asked
        running.shutdown()
        thread.join()


def test_the_names_are_torchvisions():
    assert cifar10.ARCHIVE == CIFAR10.filename and cifar10.UNPACKED == CIFAR10.base_folder


def test_every_image_keeps_its_label_and_the_test_images_are_the_test_batch(archive):
    found = data.load(str(archive))
    assert (found.name, found.classes, found.shape, found.pad, found.flip) == ("cifar10", 10, (3, 32, 32), 4, True)
    assert [len(s) for s in (found.train, found.validation, found.test)] == [90, 10, 20]
    numbers = [s.pixels[:, 0, 0, 0].tolist() for s in (found.train, found.validation, found.test)]
    assert sorted(numbers[0] + numbers[1]) == list(range(100)) and sorted(numbers[2]) == list(range(100, 120))
    for split in (found.train, found.validation, found.test):
        assert split.pixels[:, 0, 0, 1].tolist() == split.labels.tolist()
        assert len(set(split.labels.bincount().tolist())) == 1


def test_archive_its_folder_and_the_unpacked_files_give_the_same(archive, tmp_path, files):
    unpacked = tmp_path / "other" / cifar10.UNPACKED
    unpacked.mkdir(parents=True)
    for name, content in files.items():
        (unpacked / name).write_bytes(content)
    texts = [str(archive), f"cifar10:{archive}", str(archive.parent), f"cifar10:{archive.parent}", str(unpacked.parent)]
    found = [data.load(text) for text in texts]
    assert {one.name for one in found} == {"cifar10"} and len({one.content_hash for one in found}) == 1
    small = data.load(f"cifar10@16:{archive}")
    assert small.name == "cifar10@16" and small.shape == (3, 16, 16) and small.pad == 2
    averaged = found[0].test.pixels.unflatten(3, (16, 2)).unflatten(2, (16, 2)).float().mean((3, 5))
    assert float((small.test.pixels - averaged).abs().max()) <= 0.5


def test_no_pickle_is_read_before_its_md5_was_checked(archive, files, tmp_path, monkeypatch):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "hacked"), "w"))

    evil = pickle.dumps(Evil())
    for name in ("data_batch_3", "test_batch", "batches.meta"):
        path = packed(tmp_path / "evil.tar.gz", files | {name: evil})
        with pytest.raises(InputError, match="is not the archive of cifar10, or not all of it"):
            data.load(f"cifar10:{path}")
        with monkeypatch.context() as patch:  # and where the archive's md5 were that of the list
            patch.setattr(CIFAR10, "tgz_md5", md5(path.read_bytes()))
            with pytest.raises(InputError, match="damaged or incomplete"):
                data.load(f"cifar10:{path}")
        unpacked = tmp_path / name / cifar10.UNPACKED
        unpacked.mkdir(parents=True)
        for other, content in (files | {name: evil}).items():
            (unpacked / other).write_bytes(content)
        with pytest.raises(InputError, match="damaged or incomplete"):
            data.load(str(unpacked.parent))
    assert not (tmp_path / "hacked").exists()


def test_an_archive_that_lacks_a_file_or_holds_a_link_is_refused(archive, files, tmp_path, monkeypatch):
    path = packed(tmp_path / "x.tar.gz", {name: files[name] for name in NAMES})
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(path.read_bytes()))
    with pytest.raises(InputError, match="the file cifar-10-batches-py/batches.meta is not in it"):
        data.load(f"cifar10:{path}")
    with tarfile.open(tmp_path / "y.tar.gz", "w:gz") as made:
        member = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        made.addfile(member)
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5((tmp_path / "y.tar.gz").read_bytes()))
    with pytest.raises(InputError, match="data_batch_1 is not in it"):
        data.load(f"cifar10:{tmp_path / 'y.tar.gz'}")


def test_what_is_not_there_is_one_line_with_the_command_that_brings_it(files, tmp_path):
    with pytest.raises(
        InputError, match=r"cifar10 is not in \S*cache: normbook data fetch brings it \(170 MB\), or say"
    ):
        data.load("cifar10")
    with pytest.raises(InputError, match=rf"normbook data fetch --data {tmp_path} brings it"):
        data.load(f"cifar10:{tmp_path}")
    assert not (tmp_path / "cache").exists()


def test_fetch_downloads_once_and_a_run_never_does(server, tmp_path):
    with pytest.raises(InputError, match="normbook data fetch brings it"):
        data.load("cifar10")
    assert server == []
    found = data.fetch()
    assert found.name == "cifar10" and set(server) == {f"/{cifar10.ARCHIVE}"}
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == [
        ".lock", cifar10.ARCHIVE, "cifar10.json", "cifar10.npy",
    ]  # fmt: skip
    asked = len(server)
    assert data.fetch().content_hash == data.load("cifar10").content_hash == found.content_hash
    assert data.load("cifar10@8").shape == (3, 8, 8) and len(server) == asked
    assert data.fetch(str(tmp_path / "data")).content_hash == found.content_hash  # an empty folder
    assert (tmp_path / "data" / cifar10.ARCHIVE).exists() and len(server) > asked


def test_a_download_of_something_else_leaves_nothing(server, tmp_path, monkeypatch):
    monkeypatch.setattr(CIFAR10, "tgz_md5", "0" * 32)
    with pytest.raises(InputError, match="cannot be downloaded into .*; run again with a network, or bring cifar-10"):
        data.fetch()
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_a_network_there_is_one_line(files, tmp_path, monkeypatch):
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/nothing")  # the port of discard: nobody listens
    with pytest.raises(InputError) as error:
        data.fetch()
    assert "cannot be downloaded" in str(error.value) and "\n" not in str(error.value)


def test_a_wrong_archive_is_never_overwritten(server, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / cifar10.ARCHIVE).write_bytes(b"half")
    with pytest.raises(
        InputError, match="not the archive of cifar10, or not all of it: .* remove it, normbook data fetch"
    ):
        data.fetch()
    assert (tmp_path / "cache" / cifar10.ARCHIVE).read_bytes() == b"half" and server == []


def test_without_torchvision_there_is_one_line(archive, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(InputError, match="cifar10 is read by torchvision: install the one that belongs to your torch"):
        data.load(str(archive))
