"""normbook.data.cache: decoded images are kept whole, checked when read, and decoded once."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from fakes import laid_out, picture
from PIL import Image

from normbook import data, files, grid, records, train
from normbook.data import images, sources
from normbook.errors import InputError
from normbook.train import Config

pytestmark = pytest.mark.usefixtures("decoded")


def kept(tmp_path, decoded):
    laid_out(tmp_path / "pets")
    name = data.use(f"imagefolder:{tmp_path / 'pets'}")
    (path,) = decoded.glob("*.npy")
    return name, path


def test_a_folder_is_decoded_once_and_again_after_a_change(tmp_path, decoded, monkeypatch):
    name, path = kept(tmp_path, decoded)
    sources._prepared.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(images, "read_folder", lambda *_: pytest.fail("decoded again"))
        assert data.use(f"imagefolder:{tmp_path / 'pets'}") == name
        (tmp_path / "pets").rename(tmp_path / "moved")
        assert data.use(f"imagefolder:{tmp_path / 'moved'}") == name
    Image.fromarray(picture(999, 7, 7).repeat(2, 0)).resize((6, 6)).save(tmp_path / "moved/train/cat/000.png")
    sources._prepared.cache_clear()
    assert data.use(f"imagefolder:{tmp_path / 'moved'}") != name
    assert len(list(decoded.glob("*.npy"))) == 2


def edit(key, value):
    def change(path):
        described = path.with_suffix(".json")
        described.write_text(json.dumps(json.loads(described.read_text()) | {key: value}))

    return change


def flipped(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def pickled(path):
    with path.open("wb") as file:
        np.save(file, np.array([{}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize("change", [
    flipped, pickled,
    lambda path: path.write_bytes(path.read_bytes()[:-5]), lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(b"\x93NUMPY\x01\x00\x10\x00("), lambda path: path.unlink(),
    lambda path: np.save(path, np.zeros((42, 3, 6, 6))), lambda path: np.save(path, np.zeros(42, np.uint8)),
    lambda path: path.with_suffix(".json").write_text("{"), lambda path: path.with_suffix(".json").write_text("[]"),
    edit("train", [10, 24]), edit("train", [10, -1]), edit("train", [10**400, 1]), edit("test", [3]),
    edit("test", None),     edit("format", 2), edit("name", 3), edit("content_hash", "0"), edit("train", [True, 25]),
    edit("test", [[3], 4]),
])  # fmt: skip
def test_damaged_decoded_images_are_one_line_that_says_what_to_remove(change, tmp_path, decoded):
    name, path = kept(tmp_path, decoded)
    change(path)
    with pytest.raises(InputError) as error:
        data.load(name)
    text = str(error.value)
    assert "damaged decoded images (" in text and "\n" not in text
    assert f"remove {path.name} and {path.stem}.json there and run the same command again" in text
    for left in (path, path.with_suffix(".json")):
        left.unlink(missing_ok=True)
    sources._prepared.cache_clear()
    assert data.load(f"imagefolder:{tmp_path / 'pets'}").name == name


@pytest.mark.parametrize("at", ["fsync", "replace"])
@pytest.mark.parametrize("call", [1, 2])
def test_decoded_images_are_written_whole_or_not_at_all(at, call, tmp_path, decoded, monkeypatch):
    laid_out(tmp_path / "pets")
    calls, honest = [], getattr(files.os, at)

    def stop(*arguments):
        calls.append(1)
        if len(calls) == call:
            raise OSError(28, "No space left on device")
        return honest(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, at, stop)
        with pytest.raises(InputError, match="cannot write the decoded images .*: No space left on device; mend this"):
            data.load(f"imagefolder:{tmp_path / 'pets'}")
    assert not list(decoded.glob("*.json")) + list(decoded.glob(".*.tmp"))
    assert len(data.load(f"imagefolder:{tmp_path / 'pets'}").train) == 32


def test_a_worker_reads_the_dataset_where_its_driver_has_it(tmp_path, decoded):
    """The worker's own default folder is another one: this process was told, and tells it."""
    name, path = kept(tmp_path, decoded)
    (found,) = grid.compute(hash_in_worker, [(name,)])
    assert found == data.load(name).content_hash


def hash_in_worker(name):
    return data.load(name).content_hash


def test_records_carry_the_name_and_the_content_and_never_the_path(tmp_path, decoded):
    laid_out(tmp_path / "pets")
    text = f"imagefolder:{tmp_path / 'pets'}"
    config = Config("batch_norm", lr=0.1, depth=10, width=0.25, batch_size=8, steps=2, data=text, augment=True)
    found = data.load(text)
    assert config.data == found.name and config == Config(**asdict(config))
    (result,) = train.run([config])
    record = records.make(result)
    assert record["data_hash"] == found.content_hash and record["outcome"] == {"finished": True}
    assert str(tmp_path) not in json.dumps(record) and grid.config_of(record) == config
    assert record["name"] == records.name_of(asdict(config), found.content_hash)


def test_a_record_never_says_where_to_read(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "read_folder", lambda *_: pytest.fail("read"))
    laid_out(tmp_path / "pets")
    content = asdict(Config("none", steps=2)) | {"data": f"imagefolder:{tmp_path / 'pets'}"}
    for text in (content["data"], str(tmp_path / "pets"), ["digits"], None):
        with pytest.raises(InputError, match="record x: no configuration of this version"):
            grid.config_of({"name": "x", "config": content | {"data": text}})


def test_a_change_in_memory_never_reaches_the_file(tmp_path, decoded):
    name, path = kept(tmp_path, decoded)
    before = path.read_bytes()
    data.load(name).train.pixels.zero_()
    assert path.read_bytes() == before


def test_two_processes_decode_once(tmp_path, decoded):
    laid_out(tmp_path / "pets")
    script = (
        "import sys; from pathlib import Path; from normbook.data import images, sources\n"
        "folder, log = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "sources.default_folder = lambda: folder\n"
        "honest = images.read_folder\n"
        "def read(*a):\n    log.open('a').write('once\\n'); return honest(*a)\n"
        "images.read_folder = read\n"
        "print(sources.use(sys.argv[3]))\n"
    )
    command = [script, decoded, tmp_path / "log", f"imagefolder:{tmp_path / 'pets'}"]
    both = [started(*command) for _ in range(2)]
    names = {process.communicate(timeout=120)[0] for process in both}
    assert len(names) == 1 and names != {""} and (tmp_path / "log").read_text() == "once\n"


def started(script, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(Path(data.__file__).parents[2])}
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)], env=environment, stdout=subprocess.PIPE, text=True
    )
