"""The record of one run: one JSON file, named by the hash of what was run, written whole or not at all.

The name is the hash of canonical JSON of the configuration, the hash of the data's content and the schema version. What
may vary without making it another run (device, versions, seconds, code) stands in the record but not in the name. The
file's checksum is over all of it, so that a value edited by hand is noticed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from normbook.errors import InputError
from normbook.files import whole

SCHEMA = 2  # 2: with a checksum
CODE = ("data", "norms", "models", "probes/inference.py", "train")  # the modules that compute a record
REQUIRED = {
    "schema": int, "name": str, "config": dict, "data_hash": str, "code": str, "outcome": dict, "final": dict,
    "curves": dict, "device": str, "threads": int, "members": int, "compiled": bool, "versions": dict,
    "seconds": float, "peak_memory_mb": float, "start": float, "end": float,
}  # fmt: skip

Record = dict[str, Any]


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text. Raises ValueError for nan and infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def name_of(config: Mapping[str, Any], data_hash: str) -> str:
    """The name of the run's record: 20 hexadecimal digits of sha256."""
    text = canonical({"schema": SCHEMA, "config": dict(config), "data": data_hash})
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def checksum(record: Mapping[str, Any]) -> str:
    """Hash of everything in a record's file but the checksum itself."""
    text = canonical({key: value for key, value in record.items() if key != "checksum"})
    return hashlib.sha256(text.encode()).hexdigest()[:20]


@cache
def code_hash() -> str:
    """Hash of the modules that compute a record; a record with another one is "older code"."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for name in CODE:
        for path in sorted((here / name).glob("*.py")) or [here / name]:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def make(result: Mapping[str, Any]) -> Record:
    """A record from the result of a run: schema, name and code are added."""
    record = {"schema": SCHEMA, "code": code_hash(), **result}
    record["name"] = name_of(result["config"], result["data_hash"])
    return json.loads(canonical(record))  # what is used now is what is read later


def write(folder: Path, record: Record) -> Path:
    """Write ``record`` as ``folder/NAME.json``, whole or not at all.

    Raises:
        InputError: the folder cannot be written to.
    """
    path = folder / f"{record['name']}.json"
    text = canonical({**record, "checksum": checksum(record)}) + "\n"
    try:
        with whole(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise InputError(
            f"cannot write the record {path}: {error.strerror}; nothing is lost: mend this and run again"
        ) from None
    return path


def read(path: Path) -> Record:
    """Read and check one record.

    Raises:
        InputError: the file is not JSON, lacks a field, was edited, or its name is not that of the run it holds.
    """
    try:
        text = path.read_text(encoding="utf-8")
        record = json.loads(text, parse_constant=_refuse, parse_float=_number, parse_int=_number)
        content = checksum(record) if isinstance(record, dict) else ""
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a record ({error}); move it away and run again") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; mend this, run again") from None
    if not isinstance(record, dict):
        raise InputError(f"{path}: not a record (no JSON object); move it away and run again")
    schema = record.get("schema")
    if type(schema) is int and schema != SCHEMA:
        raise InputError(f"{path}: written by schema {schema}, this version reads schema {SCHEMA}; move it away")
    for field, kind in REQUIRED.items():
        value = record.get(field)
        if type(value) is not kind and not (kind is float and type(value) is int):  # exactly: a bool is an int too
            raise InputError(f"{path}: field {field!r} is missing or of the wrong kind; move it away and run again")
    name = name_of(record["config"], record["data_hash"])
    if not path.stem == record["name"] == name:
        raise InputError(f"{path}: its content belongs to the run {name}; it was renamed or edited, move it away")
    if record.pop("checksum", None) != content:
        raise InputError(f"{path}: its content and its checksum differ: edited or damaged, move it away and run again")
    return record


def read_all(folder: Path) -> Iterator[Record]:
    """Read every record of a folder, in the order of names. Raises InputError at the first that is damaged."""
    for path in sorted(folder.glob("*.json")):
        yield read(path)


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON number")


def _number(text: str) -> int | float:
    if not math.isfinite(float(text)):
        raise ValueError(f"the number {text[:20]} is too large")
    return float(text) if set(text) & set(".eE") else int(text)
