"""``python -m benchmarks.profile_chapters all``: where the processor's time goes when chapters are run.

py-spy samples every process of ``normbook run`` five times a second, native frames too. What waits counts nothing:
py-spy leaves out most of it, `WAITS` the rest. Each sample goes to the first part that fits, from the innermost frame
outwards. Needs ``pip install -e .[bench]`` and, where ptrace is restricted, root.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

# the innermost frames of a thread that waits: for another process, for a message, or asleep
WAITS = re.compile(r"^(epoll_wait|poll|select|clock_nanosleep|PyThread_acquire_lock_timed|os_read|os_waitpid|wait4)\b")
COMPILED = re.compile(r"^0x[0-9a-f]+ \(\?\)$")  # what oneDNN compiles while it runs has no name
LIMIT = 0.10  # of the time: more than that in another part than these is a finding
EXPECTED = ("kernels", "data", "imports")
# (part, what a frame's text holds), the first that fits a frame; frames are looked at from the innermost outwards
PARTS = (
    ("imports", r"<frozen importlib|dlopen|ld-linux|_dl_"),
    ("data", r"normbook/data/"),
    ("kernels", r"libtorch|libgomp|libiomp|libmkl|libdnnl|libshm|at::|c10::|dnnl|mkl_|torch/_C"),
    ("figures", r"matplotlib|seaborn|PIL/|libfreetype|_backend_agg|normbook/(figures|curves)"),
    ("statistics", r"scipy/|normbook/claims"),
    ("records", r"normbook/(records|files|grid)\.py"),
    ("notebooks", r"nbclient|nbformat|papermill|jupyter|IPython|ipykernel|zmq|tornado|asyncio|traitlets"),
    ("training, in Python", r"normbook/(train|models|norms|probes)/"),
)


def part(stack: str) -> str:
    """The part of one sampled stack, frames outermost first, separated by semicolons; "waits" if it waits."""
    frames = stack.split(";")
    if any(WAITS.search(frame) for frame in frames[-4:]):
        return "waits"
    if COMPILED.search(frames[-1]) and any("torch/" in frame for frame in frames[-6:]):
        return "kernels"
    if any(re.search(PARTS[0][1], frame) for frame in frames):
        return "imports"
    for frame in reversed(frames):
        for name, pattern in PARTS:
            if re.search(pattern, frame):
                return name
    return "other"


def shares(lines: Iterable[str]) -> dict[str, float]:
    """{part: share of the samples} of collapsed stacks (``frame;... count``) without those that wait, largest first."""
    count: Counter[str] = Counter()
    for line in lines:
        stack, _, number = line.rstrip("\n").rpartition(" ")
        count[part(stack)] += int(number)
    del count["waits"]
    return {name: n / count.total() for name, n in count.most_common()}


def main(chapters: Sequence[str]) -> int:
    """Run the chapters under py-spy and print the parts; 1 where another than those expected is above the limit."""
    spy = shutil.which("py-spy")
    if spy is None:
        print("py-spy is not installed: pip install -e .[bench]", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="normbook-profile-") as folder:
        stacks = Path(folder) / "stacks"
        for chapter in chapters:
            run = [sys.executable, "-m", "normbook", "run", chapter, "--out", folder]
            record = [spy, "record", "--subprocesses", "--native", "--rate", "5", "--format", "raw"]
            subprocess.run([*record, "--output", f"{stacks}-{chapter}", "--", *run], check=True)
        found = shares(line for path in Path(folder).glob("stacks-*") for line in path.open())
    for name, share in found.items():
        print(f"{name:22}{share:7.1%}")
    above = [name for name, share in found.items() if share > LIMIT and name not in EXPECTED]
    print(f"above {LIMIT:.0%} and not {', '.join(EXPECTED)}: {', '.join(above) or 'nothing'}")
    return int(bool(above))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["all"]))
