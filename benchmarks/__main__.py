"""``python -m benchmarks``: measure, print the table (or JSON), and keep the readings in ``_build/bench/``.

24 minutes on 2 CPU cores. A reading worth keeping is copied to ``benchmarks/results/`` and committed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import tempfile
import warnings
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import torch

from normbook import train
from normbook.errors import InputError

NOTES = (
    "Medians of 5 repeats, interleaved in one process after a warm-up; a step counts loading, augmentation, forward, "
    "backward, update.",
    "32x32: 50,000 random uint8 images; 8x8: 1,000 digits; labels are random. Loaders of P0, Lightning and skorch keep "
    "their workers between repeats.",
    "FLOP %: of the faster matmul; copy %: bytes that autograd saves, twice, of the copy. P1 is tried in fp32 and bf16 "
    "and takes the faster, P2 as P1;",
    "ours takes normbook's precision auto. First step s and peak MiB: with compiling, in a process of its own, above "
    "torch imported, without loader workers.",
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see python -m benchmarks --help")


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def file_name(device: str, torch_version: str) -> str:
    """DEVICE-TORCH.json in lower case, without what a file name should not have."""
    return re.sub(r"[^a-z0-9.]+", "-", f"{device}-torch-{torch_version.split('+')[0]}".lower()).strip("-") + ".json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark of this machine."""
    try:
        return _command(sys.argv[1:] if arguments is None else arguments)
    except (InputError, KeyboardInterrupt) as error:
        stopped = isinstance(error, KeyboardInterrupt)
        print(f"benchmarks: {'stopped' if stopped else error}", file=sys.stderr)
        return 130 if stopped else 2


def _command(arguments: Sequence[str]) -> int:
    parser = _Parser(prog="python -m benchmarks", description=main.__doc__)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--full", action="store_true", help="every net at every size and batch (hours)")
    parser.add_argument("--json", action="store_true", help="print the readings as JSON, not as a table")
    options = parser.parse_args(arguments)
    device = train.resolve_device(options.device)
    from benchmarks import cases, measure, report

    warnings.filterwarnings("ignore")  # of the peers, about settings that a benchmark wants
    with tempfile.TemporaryDirectory(prefix="normbook-bench-") as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # nothing is compiled already
        found: dict[str, Any] = measure.measure_all(cases.cases(device, options.full), device)
    name = train.describe_device(device)
    found |= {
        "device": name, "device_kind": device, "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version()}
        | {p: version(p) for p in ("torch", "torchvision", "lightning", "skorch")},
        "full": options.full, "notes": list(NOTES),
    }  # fmt: skip
    found["targets"] = report.targets(found)
    text = json.dumps(found, indent=1)
    kept = Path("_build/bench") / file_name(name, torch.__version__)
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(text + "\n")
    print(text if options.json else "\n".join(report.lines(found)))
    print(f"the readings are in {kept}; to keep them, copy them to benchmarks/results/", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
