"""normbook.errors: one line, with the nearest valid name."""

import pytest

from normbook.errors import InputError, choose, nearest


def test_nearest_suggests_the_closest_name_and_nothing_where_none_is_close():
    assert nearest("skipnit", ["fixup", "skipinit"]) == "; did you mean 'skipinit'?"
    assert nearest("zzz", ["fixup", "skipinit"]) == ""
    assert nearest("x", []) == ""


def test_choose_returns_a_valid_name():
    assert choose("arm", "fixup", ("none", "fixup")) == "fixup"


def test_choose_names_what_was_asked_the_nearest_name_and_all_names_in_one_line():
    with pytest.raises(InputError) as caught:
        choose("arm", "fixupp", iter(("none", "fixup")))
    assert str(caught.value) == "unknown arm 'fixupp'; did you mean 'fixup'? (one of: none, fixup)"


def test_input_error_is_a_value_error_that_survives_a_worker_process():
    import pickle

    error = pickle.loads(pickle.dumps(InputError("one line")))
    assert isinstance(error, ValueError) and isinstance(error, InputError) and str(error) == "one line"
