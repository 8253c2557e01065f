"""normbook.files: what is there is whole; records and caches test their own use of it."""

import os

import pytest

from normbook import files


def test_a_file_takes_its_place_when_the_block_has_ended_well(tmp_path):
    path = tmp_path / "one.json"
    for text in (b"first", b"second"):
        with files.whole(path) as file:
            file.write(text)
            assert not path.exists() or path.read_bytes() == b"first"
        assert path.read_bytes() == text and os.listdir(tmp_path) == ["one.json"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_block_that_ends_badly_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "one.json"
    path.write_bytes(b"first")
    with pytest.raises(error), files.whole(path) as file:
        file.write(b"sec")
        raise error
    assert path.read_bytes() == b"first" and os.listdir(tmp_path) == ["one.json"]
