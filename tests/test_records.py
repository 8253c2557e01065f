"""normbook.records: one file a run, named by what was run, whole or not at all, and nothing else read as one."""

import errno
import json
import math
import os
from dataclasses import asdict, fields, replace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from normbook import files, records
from normbook.errors import InputError
from normbook.train import Config

CONFIG = Config("batch_norm", lr=0.1, steps=3, weight_decay=0.0)
DATA = "0123456789abcdef"
quick = settings(
    deadline=None, max_examples=60, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


def record(config=CONFIG, **changes):
    result = {
        "config": asdict(config), "data_hash": DATA, "outcome": {"finished": True}, "final": {"test_loss": 0.1 + 0.2},
        "curves": {"train_loss": [[1, 2.5], [3, 1.25]]}, "device": "some cpu", "threads": 1, "members": 6,
        "compiled": False, "versions": {"torch": "2"}, "seconds": 1.5, "peak_memory_mb": 100.0, "start": 1e9,
        "end": 1e9 + 2,
    }  # fmt: skip
    return records.make({**result, **changes})


def refusal(path):
    """The one line with which a file is refused."""
    with pytest.raises(InputError) as caught:
        records.read(path)
    text = str(caught.value)
    assert str(path) in text and "\n" not in text
    return text


def rewritten(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def test_what_was_written_is_read_back(tmp_path):
    one = record()
    path = records.write(tmp_path, one)
    assert path == tmp_path / f"{one['name']}.json" and records.read(path) == one
    assert os.listdir(tmp_path) == [path.name]


def test_a_diverged_run_and_one_without_a_curve_are_records_too(tmp_path):
    one = record(outcome={"diverged_at": 0}, final={}, curves={"train_loss": []})
    assert records.read(records.write(tmp_path, one)) == one


def test_read_all_gives_the_records_in_the_order_of_names_and_nothing_else(tmp_path):
    ones = [record(replace(CONFIG, seed=(0, i))) for i in range(4)]
    for one in ones:
        records.write(tmp_path, one)
    (tmp_path / ".lock").write_text("")
    assert list(records.read_all(tmp_path)) == sorted(ones, key=lambda one: one["name"])


def test_read_all_stops_at_a_damaged_record(tmp_path):
    records.write(tmp_path, record())
    (tmp_path / "0.json").write_text("{")
    with pytest.raises(InputError, match=r"0\.json"):
        list(records.read_all(tmp_path))


def test_the_name_is_pinned_and_does_not_depend_on_the_order_of_keys_or_on_tuples():
    assert records.name_of({"b": [1, 2], "a": 0.5}, DATA) == "107bc3f24dc479ae6c7a"
    assert records.name_of({"a": 0.5, "b": (1, 2)}, DATA) == "107bc3f24dc479ae6c7a"


def test_the_name_changes_with_every_field_of_the_configuration_and_with_the_data():
    changed = {
        "arm": "none", "lr": 0.2, "model": "mlp", "depth": 22, "width": 2, "activation": "sigmoid", "norm": "torch.nn",
        "data": "cifar10", "n_train": 5, "augment": True, "batch_size": 9, "schedule": "constant", "momentum": 0.8,
        "weight_decay": 0.1, "dropout": 0.1, "precision": "bf16", "evaluate": ("test",), "seed": (0, 1), "steps": 4,
        "init_std": 0.1, "trainable": "norm", "ghost_batch_size": 4, "label_noise": 0.1, "optimizer": "adam",
        "dropout_at": "before_norm", "dropout_kind": "uniform", "statistics": ("batch",),
        "measure": ("variance_shift",),
    }  # fmt: skip
    variants = [replace(CONFIG, **{field: value}) for field, value in changed.items()]
    variants += [replace(CONFIG, steps=None, epochs=3), replace(CONFIG, seed=(1, 0))]
    assert set(changed) | {"epochs"} == {field.name for field in fields(Config)}
    names = {records.name_of(asdict(config), DATA) for config in [CONFIG, *variants]}
    names.add(records.name_of(asdict(CONFIG), "another"))
    assert len(names) == len(variants) + 2


def test_the_name_changes_with_the_schema(monkeypatch):
    before = records.name_of(asdict(CONFIG), DATA)
    monkeypatch.setattr(records, "SCHEMA", 3)
    assert records.name_of(asdict(CONFIG), DATA) != before


def test_the_name_does_not_change_with_what_is_not_part_of_the_run(monkeypatch):
    changes = {"device": "gpu", "threads": 4, "members": 1, "compiled": True, "versions": {}, "seconds": 9.0,
               "peak_memory_mb": 1.0, "start": 0.0, "end": 1.0, "outcome": {}, "final": {}, "curves": {}}  # fmt: skip
    names = {record(**{field: value})["name"] for field, value in changes.items()}
    monkeypatch.setattr(records, "code_hash", lambda: "older")
    assert names | {record()["name"]} == {record()["name"]}
    assert record()["code"] == "older"


def test_the_code_hash_covers_the_modules_that_compute_a_record(tmp_path, monkeypatch):
    modules = {name: name for name in (
        "data/dataset.py", "norms/batch.py", "norms/__init__.py", "models/__init__.py", "probes/inference.py",
        "train/loop.py",
    )}  # fmt: skip

    def hash_of(change):
        for name, text in (modules | change).items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text)
        records.code_hash.cache_clear()
        return records.code_hash()

    with monkeypatch.context() as patch:
        patch.setattr(records, "__file__", str(tmp_path / "records.py"))
        hashes = [hash_of({name: "changed"}) for name in modules]
        assert len({hash_of({}), *hashes}) == 7 and hash_of({}) == hash_of({"claims.py": "changed"})
    records.code_hash.cache_clear()
    assert len(records.code_hash()) == 16


def test_canonical_text_is_the_same_for_equal_values_and_has_no_spaces():
    assert records.canonical({"b": (1, 2.0), "a": None}) == '{"a":null,"b":[1,2.0]}'


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_never_written(bad):
    with pytest.raises(ValueError):
        records.canonical({"a": [bad]})
    with pytest.raises(ValueError):
        record(final={"test_loss": bad})


def test_a_truncated_record_is_refused_at_every_length(tmp_path):
    path = records.write(tmp_path, record())
    whole = path.read_bytes()
    for length in [*range(0, len(whole) - 1, 37), len(whole) - 2]:
        path.write_bytes(whole[:length])
        refusal(path)


def test_a_renamed_record_is_refused(tmp_path):
    path = records.write(tmp_path, record())
    assert "renamed or edited" in refusal(path.rename(tmp_path / "0123456789abcdef0123.json"))


@pytest.mark.parametrize("change", [
    lambda r: r["config"].update(lr=0.2), lambda r: r["config"].update(extra=1), lambda r: r["config"].pop("lr"),
    lambda r: r.update(data_hash="another"), lambda r: r.update(name="0" * 20),
])  # fmt: skip
def test_a_record_whose_run_was_edited_is_refused(tmp_path, change):
    assert "renamed or edited" in refusal(rewritten(records.write(tmp_path, record()), change))


def test_a_record_of_another_schema_is_refused_and_both_schemas_are_named(tmp_path):
    path = rewritten(records.write(tmp_path, record()), lambda r: r.update(schema=1))
    assert refusal(path).endswith("written by schema 1, this version reads schema 2; move it away")
    rewritten(path, lambda r: [r.pop("checksum"), r.pop("threads")])  # as an older version may have written it
    assert "written by schema 1" in refusal(path)


@pytest.mark.parametrize("change", [
    lambda r: r["final"].update(test_loss=0.1), lambda r: r["curves"]["train_loss"].pop(),
    lambda r: r.update(seconds=2), lambda r: r.update(extra=1), lambda r: r.pop("checksum"),
    lambda r: r.update(checksum="0" * 20), lambda r: r["outcome"].update(finished=1), lambda r: r.update(checksum=None),
])  # fmt: skip
def test_a_record_with_an_edited_value_is_refused(tmp_path, change):
    path = records.write(tmp_path, record())
    records.read(rewritten(path, lambda r: None))  # other spaces are the same record
    assert "edited or damaged" in refusal(rewritten(path, change))


def test_the_checksum_stands_in_the_file_only(tmp_path):
    path = records.write(tmp_path, record())
    content = json.loads(path.read_text())
    assert content.pop("checksum") == records.checksum(content) and content == record() == records.read(path)
    assert records.write(tmp_path, records.read(path)) == path and records.read(path) == record()


@pytest.mark.parametrize("field", records.REQUIRED)
def test_a_record_without_a_field_or_with_one_of_another_kind_is_refused(tmp_path, field):
    path = records.write(tmp_path, record())
    whole = path.read_text()
    for wrong in (None, [1], [], {} if records.REQUIRED[field] is not dict else "text"):
        path.write_text(whole)
        assert field in refusal(rewritten(path, lambda r, wrong=wrong: r.update({field: wrong})))
    path.write_text(whole)
    assert field in refusal(rewritten(path, lambda r: r.pop(field)))


@pytest.mark.parametrize("field, text", [
    ("seconds", "1e999"), ("seconds", "1" + "0" * 400), ("seconds", "NaN"), ("seconds", "-Infinity"),
    ("seconds", "true"), ("final", '{"test_loss": 1e999}'), ("final", '{"test_loss": NaN}'),
    ("config", '{"lr": 1e999}'), ("config", '{"lr": Infinity}'), ("schema", "true"), ("threads", "9" * 5000),
    ("config", '{"a":' * 700 + "1" + "}" * 700), ("data_hash", '"\\ud800"'),
])  # fmt: skip
def test_numbers_and_nesting_that_break_a_reader_are_refused(tmp_path, field, text):
    path = records.write(tmp_path, record())
    content = json.loads(path.read_text())
    content[field] = "HERE"
    path.write_text(json.dumps(content).replace('"HERE"', text))
    refusal(path)


@quick
@given(st.binary(max_size=200))
@example(b"\xff\xfe")
@example(b"\xef\xbb\xbf{}")
@example(b"[" * 100_000)
@example(b"null")
def test_arbitrary_bytes_are_refused_and_nothing_else_is_raised(tmp_path, content):
    path = tmp_path / "0123456789abcdef0123.json"
    path.write_bytes(content)
    refusal(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@quick
@given(JSON)
def test_arbitrary_json_is_refused_and_nothing_else_is_raised(tmp_path, value):
    path = tmp_path / "0123456789abcdef0123.json"
    path.write_text(json.dumps(value))
    refusal(path)


@quick
@given(st.sampled_from(sorted(records.REQUIRED)), JSON)
def test_a_record_with_any_value_in_any_field_is_read_or_refused(tmp_path, field, value):
    path = records.write(tmp_path, record())
    rewritten(path, lambda r: r.update({field: value}))
    try:
        assert set(records.REQUIRED) <= set(records.read(path))
    except InputError as error:
        assert str(path) in str(error) and "\n" not in str(error)


def test_what_cannot_be_opened_is_refused(tmp_path):
    (tmp_path / "folder.json").mkdir()
    refusal(tmp_path / "folder.json")
    refusal(tmp_path / "missing.json")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_nothing_behind_and_keeps_what_was_there(tmp_path, monkeypatch, call):
    old = record(seconds=1.0)
    path = records.write(tmp_path, old)

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for folder in (tmp_path, tmp_path / "empty"):
        folder.mkdir(exist_ok=True)
        with monkeypatch.context() as patch:
            patch.setattr(files.os, call, full)
            with pytest.raises(InputError, match="No space left on device") as caught:
                records.write(folder, record(seconds=2.0))
        assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    assert records.read(path) == old
    assert sorted(os.listdir(tmp_path)) == [path.name, "empty"] and os.listdir(tmp_path / "empty") == []


def test_an_interrupted_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        records.write(tmp_path, record())
    assert os.listdir(tmp_path) == []


def test_a_record_is_on_the_disk_before_it_is_moved_into_place(tmp_path, monkeypatch):
    calls = []
    for call in ("fsync", "replace"):
        honest = getattr(os, call)
        monkeypatch.setattr(files.os, call, lambda *a, c=call, h=honest: calls.append(c) or h(*a))
    records.write(tmp_path, record())
    assert calls == ["fsync", "replace"]


def test_what_a_killed_writer_left_is_overwritten(tmp_path):
    one = record()
    (tmp_path / f".{one['name']}.json.tmp").write_text('{"half":')
    records.write(tmp_path, one)
    assert os.listdir(tmp_path) == [f"{one['name']}.json"] and list(records.read_all(tmp_path)) == [one]


def test_a_folder_that_is_a_file_or_missing_is_bad_input(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "missing"):
        with pytest.raises(InputError, match="cannot write the record"):
            records.write(folder, record())
