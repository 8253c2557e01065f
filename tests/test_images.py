"""normbook.data.images: image folders and archives, decoded as they are."""

import hashlib
import io
import multiprocessing
import tarfile

import numpy as np
import pytest
import torch
from fakes import laid_out, picture
from PIL import Image

from normbook import data
from normbook.data import dataset, images
from normbook.errors import InputError

pytestmark = pytest.mark.usefixtures("decoded")


def raw(split):
    return {tuple(image.flatten().tolist()) for image in split.pixels}


def test_every_image_is_in_one_part_with_its_own_label(tmp_path):
    pictures = laid_out(tmp_path / "pets")
    pets = data.load(f"imagefolder:{tmp_path / 'pets'}")
    assert (pets.classes, pets.shape, pets.flip, pets.pad) == (2, (3, 6, 6), True, 0)
    assert [len(s) for s in (pets.train, pets.validation, pets.test)] == [32, 3, 7]
    for part, splits in (("train", (pets.train, pets.validation)), ("test", (pets.test,))):
        pairs = {
            (tuple(image.flatten().tolist()), int(label))
            for s in splits
            for image, label in zip(s.pixels, s.labels, strict=True)
        }
        expected = {
            (tuple(pixels.transpose(2, 0, 1).flatten().tolist()), ["cat", "dog"].index(name.split("/")[1]))
            for name, pixels in pictures.items()
            if name.startswith(part)
        }
        assert pairs == expected


def test_a_tenth_of_each_class_is_for_validation_and_the_training_images_are_shuffled():
    order, labels, (train, validation, test) = dataset.Counts((100, 200), (10, 20)).split()
    assert sorted(order.tolist()) == list(range(330))
    assert np.bincount(labels[train]).tolist() == [90, 180] and np.bincount(labels[validation]).tolist() == [10, 20]
    assert np.bincount(labels[test]).tolist() == [10, 20] and order[test].min() == 300
    assert 15 < labels[train][:45].sum() < 42  # any first n are a sample
    assert dataset.Counts((100, 200), (10, 20)).split()[0].tolist() == order.tolist()
    assert [len(part) for part in dataset.Counts((5000,) * 10, (1000,) * 10).split()[2]] == [45000, 5000, 10000]
    # written down: another stream of random numbers would be another dataset
    assert hashlib.sha256(order.astype(np.int64).tobytes()).hexdigest()[:16] == "61891c31a770657e"


def test_of_held_out_images_too_any_first_n_are_a_sample_whatever_order_they_are_stored_in():
    counts = dataset.Counts((100, 200), (100, 200))
    _, labels, parts = counts.split()
    assert (np.diff(labels[parts[2]]) >= 0).all()  # stored class by class
    pixels = np.broadcast_to(labels[:, None, None, None], (600, 3, 2, 2)).astype(np.uint8)
    one, again = (dataset.of_images("pets", pixels, counts, "hash", "cpu") for _ in range(2))
    for part, n in ((one.validation, 30), (one.test, 300)):
        assert len(part) == n and part.labels.sum() == n * 2 / 3
        assert 0.5 < part.labels[: n // 2].double().mean() < 0.83
        assert torch.equal(part.pixels[:, 0, 0, 0].long(), part.labels)
    assert torch.equal(one.test.pixels, again.test.pixels)


def test_each_channel_is_standardized_by_the_training_images_only(tmp_path):
    laid_out(tmp_path / "pets")
    pets = data.load(f"imagefolder:{tmp_path / 'pets'}")
    assert pets.train.pixels.dtype == torch.uint8 and pets.train.images.dtype == torch.float32
    train = pets.train.images.double()
    assert torch.allclose(train.mean((0, 2, 3)), torch.zeros(3, dtype=torch.double), atol=1e-6)
    assert torch.allclose(train.std((0, 2, 3), correction=0), torch.ones(3, dtype=torch.double), atol=1e-6)
    assert float(pets.test.images.mean((0, 2, 3)).abs().min()) > 1e-4
    assert torch.equal(pets.test.take(torch.tensor([2, 0])), pets.test.images[[2, 0]])
    assert torch.equal(pets.test.take(slice(1, 3)), pets.test.images[1:3])


def test_a_constant_channel_is_not_divided_by_zero():
    mean, std = dataset.moments(np.full((3, 3, 2, 2), 9, np.uint8))
    assert mean.tolist() == [9, 9, 9] and std.tolist() == [1, 1, 1]


def test_batches_of_uint8_images_are_those_of_their_float_images(tmp_path):
    laid_out(tmp_path / "pets")
    split = data.load(f"imagefolder:{tmp_path / 'pets'}").train
    plain = data.Split(split.images, split.labels)

    def epoch(of):
        return list(
            data.batches(of, 8, [torch.Generator().manual_seed(1)], [torch.Generator().manual_seed(2)], 1, True)
        )

    for (a, labels), (b, others) in zip(epoch(split), epoch(plain), strict=True):
        assert torch.equal(a, b) and torch.equal(labels, others) and a.dtype == torch.float32


def test_images_are_resized_by_area_averaging(tmp_path):
    laid_out(tmp_path / "pets", height=8, width=8)
    large, small = (data.load(f"imagefolder{at}:{tmp_path / 'pets'}") for at in ("", "@4"))
    assert small.shape == (3, 4, 4) and small.name == f"imagefolder-{small.content_hash[:8]}@4"
    averaged = large.train.pixels.unflatten(3, (4, 2)).unflatten(2, (4, 2)).float().mean((3, 5))
    assert float((small.train.pixels - averaged).abs().max()) <= 0.5
    assert large.content_hash != small.content_hash and torch.equal(large.train.labels, small.train.labels)


@pytest.mark.parametrize(
    ("height", "width", "size"), [(8, 8, 4), (6, 9, 3), (7, 5, 3), (3, 3, 6), (5, 5, 5), (50, 40, 16)]
)
def test_every_pixel_is_the_mean_over_its_area(height, width, size):
    image = picture(1, height, width)
    fine = image.repeat(size, 0).repeat(size, 1).astype(float)  # size x size equal pixels in place of each
    expected = fine.reshape(size, height, size, width, 3).mean((1, 3))
    found = images.resized(image, size)
    assert found.dtype == np.uint8 and float(np.abs(found - expected).max()) <= 0.5 + 1e-9


def test_images_of_several_sizes_need_a_size(tmp_path):
    laid_out(tmp_path / "pets")
    Image.fromarray(picture(0, 9, 5)).convert("L").save(tmp_path / "pets/test/dog/gray.jpg")
    with pytest.raises(InputError, match=r"gray.jpg has 5x9 pixels, another image 6x6; .* imagefolder@32:PATH"):
        data.load(f"imagefolder:{tmp_path / 'pets'}")
    assert data.load(f"imagefolder@5:{tmp_path / 'pets'}").shape == (3, 5, 5)


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    laid_out(tmp_path / "pets")
    monkeypatch.setattr(images, "LARGEST", 42 * 6 * 6 * 3 - 1)
    with pytest.raises(InputError, match="42 images of 6x6 pixels take .* ask for a smaller size"):
        data.load(f"imagefolder:{tmp_path / 'pets'}")
    monkeypatch.setattr(images, "LARGEST", 42 * 6 * 6 * 3)
    assert data.load(f"imagefolder:{tmp_path / 'pets'}").shape == (3, 6, 6)


def test_the_content_hash_depends_on_the_images_and_not_on_where_they_are(tmp_path):
    for name in ("one", "two", "three"):
        laid_out(tmp_path / name)
    Image.fromarray(picture(999)).save(tmp_path / "three/train/cat/000.png")
    one, two, three = (data.load(f"imagefolder:{tmp_path / name}") for name in ("one", "two", "three"))
    assert one.name == two.name == f"imagefolder-{one.content_hash[:8]}" and one.content_hash == two.content_hash
    assert three.name != one.name and three.content_hash != one.content_hash


def test_files_that_are_no_images_and_hidden_ones_are_left_out(tmp_path):
    laid_out(tmp_path / "pets")
    before = data.load(f"imagefolder:{tmp_path / 'pets'}").content_hash
    for name in ("train/cat/Thumbs.db", "train/cat/.x.png", "train/read me.txt"):
        (tmp_path / "pets" / name).write_text("x")
    (tmp_path / "pets/train/.checkpoints").mkdir()
    assert data.load(f"imagefolder:{tmp_path / 'pets'}").content_hash == before


def test_processes_decode_the_same_as_this_one(tmp_path, monkeypatch):
    """The workers import torch, which takes seconds: so one pool, for what is whole and for what is broken."""
    pictures = laid_out(tmp_path / "pets")
    (tmp_path / "pets/test/dog/000.png").write_bytes(b"no image")
    names = sorted(pictures)
    blocks = [[name for name in names if name.startswith("train")], ["test/cat/000.png", "test/dog/000.png"]]
    work = [([tmp_path / "pets" / name for name in block], block, 4, (4, 4, 3), "pets") for block in blocks]
    monkeypatch.setattr(images.os, "sched_getaffinity", lambda _: {0}, raising=False)
    results = images._results(work, images.FEW + 1)
    there, here = next(results), images._decode_block(*work[0])
    assert np.array_equal(there[0], here[0]) and there[1] == here[1]
    with pytest.raises(InputError, match="pets: test/dog/000.png is no image that can be read"):
        next(results)
    assert multiprocessing.active_children() == []


# ---- what is wrong with a folder


def remove(*names):
    def change(root):
        for name in names:
            for path in sorted((root / name).rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            (root / name).rmdir()

    return change


def keep_one(root):
    for path in list((root / "train/cat").iterdir())[1:]:
        path.unlink()


def truncated(root):
    path = root / "train/dog/000.png"
    path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize(("change", "says"), [
    (remove("test"), "pets has no folder test/ with a folder of images for each class"),
    (remove("train"), "pets has no folder train/ with a folder of images for each class"),
    (remove("train/cat", "test/cat"), "only one class, 'dog': a classifier needs two or more"),
    (remove("train/cat", "test/cat", "train/dog", "test/dog"), "no class: a classifier needs two or more"),
    (remove("test/cat"), "test/ has no class 'cat', train/ has"),
    (remove("train/cat"), "train/ has no class 'cat', test/ has"),
    (lambda root: (root / "test/eel").mkdir(), "test/eel holds no image"),
    (keep_one, "train/cat has one image: it needs two, one of them for validation"),
    (truncated, "train/dog/000.png is no image that can be read ("),
    (lambda root: (root / "test/cat/000.png").write_bytes(b""), "test/cat/000.png is no image that can be read ("),
    (lambda root: (root / "test/cat/000.png").write_text("text"), "test/cat/000.png is no image that can be read ("),
])  # fmt: skip
def test_what_is_wrong_with_a_folder_is_one_line_and_nothing_is_kept(change, says, tmp_path, decoded):
    laid_out(tmp_path / "pets")
    change(tmp_path / "pets")
    with pytest.raises(InputError) as error:
        data.load(f"imagefolder:{tmp_path / 'pets'}")
    assert says in str(error.value) and "\n" not in str(error.value) and "0x" not in str(error.value)
    assert not list(decoded.glob("*.npy")) + list(decoded.glob("*.json"))


# ---- the archive


def packed(path, files, others=()):
    """An archive of files, by name, and of other members."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for member in others:
            archive.addfile(member)
    return path


@pytest.fixture
def jpeg(tmp_path, monkeypatch):
    """A small archive that is taken for that of cifar10-jpeg, and its unpacked folder."""
    laid_out(tmp_path / "unpacked")
    files = {name: (tmp_path / "unpacked" / name).read_bytes() for name in images.listed(tmp_path / "unpacked")}
    path = packed(tmp_path / "cifar10-jpeg.tar.gz", files)
    monkeypatch.setattr(images, "JPEG_ARCHIVE", hashlib.sha256(path.read_bytes()).hexdigest())
    lines = sorted(f"{name}\0{hashlib.sha256(content).hexdigest()}\n" for name, content in files.items())
    monkeypatch.setattr(images, "JPEG_FILES", hashlib.sha256("".join(lines).encode()).hexdigest())
    return path


def test_archive_and_unpacked_folder_are_cifar10_jpeg_by_their_content(jpeg, tmp_path):
    texts = [jpeg, f"cifar10-jpeg:{jpeg}", tmp_path, f"cifar10-jpeg:{tmp_path}", tmp_path / "unpacked",
             f"imagefolder:{tmp_path / 'unpacked'}", f"cifar10-jpeg:{tmp_path / 'unpacked'}"]  # fmt: skip
    found = [data.load(str(text)) for text in texts]
    assert {one.name for one in found} == {"cifar10-jpeg"} and len({one.content_hash for one in found}) == 1
    sized = [data.load(text) for text in (f"cifar10-jpeg@3:{jpeg}", f"imagefolder@3:{tmp_path / 'unpacked'}")]
    assert {one.name for one in sized} == {"cifar10-jpeg@3"} and len({one.content_hash for one in sized}) == 1


def test_other_images_never_get_the_name_cifar10_jpeg(jpeg, tmp_path):
    laid_out(tmp_path / "other", {"train": {"a": 3, "b": 3}, "test": {"a": 1, "b": 1}})
    assert data.use(str(tmp_path / "other")).startswith("imagefolder-")
    with pytest.raises(InputError, match="other images than those of cifar10-jpeg; give it as imagefolder:"):
        data.use(f"cifar10-jpeg:{tmp_path / 'other'}")


def test_another_archive_is_refused_before_anything_of_it_is_read(tmp_path, monkeypatch):
    path = packed(tmp_path / "x.tar.gz", {"train/cat/a.png": b"x"})
    monkeypatch.setattr(tarfile, "open", lambda *_: pytest.fail("opened"))
    with pytest.raises(InputError, match="neither of cifar10 nor of cifar10-jpeg; unpack it"):
        data.use(str(path))
    with pytest.raises(InputError, match="not the archive of cifar10-jpeg: its sha256 is"):
        data.use(f"cifar10-jpeg:{path}")


def test_an_archive_writes_nothing_but_the_decoded_images(tmp_path, decoded, monkeypatch):
    """Names that would leave the folder, and links, are not images of it, even in an archive of the right hash."""
    laid_out(tmp_path / "unpacked")
    files = {name: (tmp_path / "unpacked" / name).read_bytes() for name in images.listed(tmp_path / "unpacked")}
    evil = {
        "../evil.png": b"x",
        "/tmp/evil.png": b"x",
        "train/cat/../../../evil.png": b"x",
        "train/../evil/a.png": b"x",
    }
    links = []
    for kind, target in ((tarfile.SYMTYPE, "/etc/passwd"), (tarfile.LNKTYPE, "../../evil.png")):
        member = tarfile.TarInfo(f"train/cat/link{kind!r}.png")
        member.type, member.linkname = kind, target
        links.append(member)
    honest, bad = packed(tmp_path / "honest.tar.gz", files), packed(tmp_path / "bad.tar.gz", files | evil, links)
    before = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    found = []
    for path in (honest, bad):
        monkeypatch.setattr(images, "JPEG_ARCHIVE", hashlib.sha256(path.read_bytes()).hexdigest())
        found.append(images.read_archive(path, None))
    assert np.array_equal(found[0].pixels, found[1].pixels) and found[0].classes == found[1].classes
    assert {path for path in tmp_path.rglob("*") if "cache" not in path.parts} == before
