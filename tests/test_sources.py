"""normbook.data.sources: what a text given to --data means."""

import pytest

from normbook import data
from normbook.data import images
from normbook.errors import InputError


@pytest.fixture
def here(tmp_path, monkeypatch, decoded):
    """A current folder with an image folder, a folder that holds archives, an empty one and a file."""
    monkeypatch.chdir(tmp_path)
    for folder in ("pets/train", "pets/test", "empty", "both", "jpeg", "decoded", "a:b/train"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("both/cifar-10-python.tar.gz", "both/cifar10-jpeg.tar.gz", "jpeg/cifar10-jpeg.tar.gz", "other.tar.gz",
                 "decoded/cifar10-jpeg.json", "known.bin"):  # fmt: skip
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(images, "JPEG_ARCHIVE", images.sha256_of(tmp_path / "known.bin"))
    return tmp_path


@pytest.mark.parametrize(("text", "meant"), [
    ("digits", "digits"), ("cifar10", "cifar10"), ("cifar10@16", "cifar10@16"), ("cifar10-jpeg@8", "cifar10-jpeg@8"),
    ("imagefolder:pets", "imagefolder:{}/pets"), ("imagefolder@32:./pets", "imagefolder@32:{}/pets"),
    ("pets", "imagefolder:{}/pets"), ("./pets/", "imagefolder:{}/pets"), ("a:b", "imagefolder:{}/a:b"),
    ("imagefolder:a:b", "imagefolder:{}/a:b"), ("both", "cifar10:{}/both"), ("jpeg", "cifar10-jpeg:{}/jpeg"),
    ("decoded", "cifar10-jpeg:{}/decoded"), ("cifar10:empty", "cifar10:{}/empty"),
    ("known.bin", "cifar10-jpeg:{}/known.bin"),
    ("both/cifar-10-python.tar.gz", "cifar10:{}/both/cifar-10-python.tar.gz"),
    ("cifar10-jpeg@16:known.bin", "cifar10-jpeg@16:{}/known.bin"),
])  # fmt: skip
def test_a_text_means_one_dataset_and_its_path_is_absolute(text, meant, here):
    found = str(data.locate(text))
    assert found == meant.format(here) and str(data.locate(found)) == found


@pytest.mark.parametrize(("text", "says"), [
    ("", "unknown data set ''"), ("digit", "did you mean 'digits'?"), ("cifar", "did you mean 'cifar10'?"),
    ("cifar10@0", "unknown data set 'cifar10@0'"), ("cifar10@-1", "unknown data set"),
    ("cifar10@big", "unknown data set"),
    ("imagfolder:pets", "unknown data set 'imagfolder'; did you mean 'imagefolder:PATH'?"),
    ("imagefolder", "say where it is, as in imagefolder:PATH"), ("cifar10:", "say where it is, as in cifar10:PATH"),
    ("imagefolder:nowhere", "there is no such file or folder"), ("./nowhere", "there is no such file or folder"),
    ("imagefolder:known.bin", "not a folder; unpack the archive"), 
    ("imagefolder:\0", "there is no such file or folder"),
    ("\0", "unknown data set"), ("~nobody-of-this-name/x", "there is no such file or folder"),
    ("empty", "holds no data set: no train/ and test/, no archive; normbook data fetch --data empty brings cifar10"),
    ("other.tar.gz", "is the archive neither of cifar10 nor of cifar10-jpeg; unpack it"),
    ("digits@16", "without a path and in one size"), ("digits:pets", "without a path and in one size"),
    ("x" * 5000, "unknown data set"),
])  # fmt: skip
def test_a_text_that_means_nothing_is_one_line(text, says, here):
    with pytest.raises(InputError) as error:
        data.locate(text)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_chapter_asks_for_a_size_unless_the_user_did(here):
    assert data.sized("cifar10", 16) == "cifar10@16" and data.sized("cifar10@8", 16) == "cifar10@8"
    assert data.sized("pets", 16) == f"imagefolder@16:{here}/pets" and data.sized("digits", 16) == "digits"


def test_a_name_is_a_name_wherever_it_is(here):
    names = ("digits", "cifar10", "cifar10@16", "cifar10-jpeg@9", "imagefolder-0123abcd", "imagefolder-0123abcd@64")
    for name in names:
        assert data.is_name(name) and data.use(name) == name
    for text in (
        "digits@2",
        "pets",
        "imagefolder",
        "imagefolder:pets",
        "imagefolder-0123",
        "cifar10@0",
        "x\n",
        "",
        None,
    ):
        assert not data.is_name(text)


def test_a_name_whose_place_was_not_told_is_one_line(here):
    with pytest.raises(InputError, match="was not told where it is; give --data imagefolder:PATH"):
        data.load("imagefolder-0123abcd")
    with pytest.raises(
        InputError, match="cifar10-jpeg.tar.gz is not in .*cache: say where it is, as --data cifar10-jpeg:"
    ):
        data.load("cifar10-jpeg@16")


def test_present_lists_the_digits_and_what_is_decoded(here):
    assert [found.name for found in data.present()] == ["digits"]
    with pytest.raises(InputError, match="'nowhere' is not a folder that is there"):
        data.present("nowhere")


def test_fetching_the_digits_brings_nothing(here):
    assert data.fetch("digits").name == "digits" and not (here / "cache").exists()
