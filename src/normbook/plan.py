"""What a chapter's grid will cost, before anything starts: runs, hours, memory and disk."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

from normbook import claims, grid, probed, records, sweep, throughput
from normbook.records import Record
from normbook.throughput import Reading
from normbook.train import Config

SAMPLE = 200  # records of a folder that are read for speed and memory, at most


@dataclass(frozen=True)
class Outlook:
    """All runs of a grid, as far as they can be told before its scan is done, and the names of those recorded.

    ``runs`` that depend on a scan which is not done have no learning rate (None) or that of a neighbour.
    """

    runs: tuple[Config, ...]
    there: dict[Config, str]

    @property
    def missing(self) -> list[Config]:
        return [config for config in self.runs if config not in self.there]


def outlook(chapter: claims.Chapter, folder: Path, keep: sweep.Keep = lambda config: True) -> Outlook:
    """The runs of a chapter's grid, or a part of them, and which are recorded in a folder.

    Raises:
        InputError: a record is damaged.
    """
    scan, closer = list(dict.fromkeys(chapter.scan)), chapter.closer
    there = dict(sweep.names(scan, folder))
    found = [records.read(folder / f"{name}.json") for name in there.values()]
    left = sweep.undecided(scan, found)
    near = sweep.around_best(found, closer, left)
    near += [replace(one, seed=s) for one in _three_rates(scan, left) for s in closer]
    nearby = dict(sweep.names(near, folder))
    found += [records.read(folder / f"{name}.json") for name in nearby.values()]
    left = sweep.undecided(scan, found, closer)
    decided = grid.best_lrs(found, [c for c in chapter.runs if sweep.kind(c) not in left])
    scanned = {(sweep.kind(c), c.seed) for c in scan}  # with each rate, so with the best one too
    later = [c for c in chapter.runs if sweep.kind(c) in left and (sweep.kind(c), c.seed) not in scanned]
    there |= nearby | dict(sweep.names(decided, folder))
    runs = tuple(filter(keep, dict.fromkeys([*scan, *near, *decided, *later])))
    return Outlook(runs, {config: there[config] for config in runs if config in there})


def _three_rates(scan: Sequence[Config], kinds: Collection[sweep.Kind]) -> list[Config]:
    """Up to three runs of each of these kinds that differ in their learning rate: as many as a closer look takes."""
    rates: dict[sweep.Kind, dict[float | None, Config]] = {}
    for c in scan:
        if sweep.kind(c) in kinds:
            rates.setdefault(sweep.kind(c), {}).setdefault(c.lr, c)
    return [one for each in rates.values() for one in list(each.values())[:3]]


def describe(chapter: claims.Chapter, scale: str, folder: Path, here: str, part: str = "") -> str:
    """What the missing runs of a chapter cost: runs, hours, memory, disk. ``here`` is this machine's device.

    Raises:
        InputError: a record or a report is damaged, or ``part`` names nothing.
    """
    view = outlook(chapter, folder, sweep.only(part, [*chapter.scan, *chapter.runs]))
    sample = _sample(folder, *(sweep.place(kept, claims.ROOT / "results" / kept) for kept in sweep.KEPT))
    readings = throughput.of_records(sample)
    readings += throughput.of_reports(claims.ROOT / "benchmarks" / "results")
    total, missing = len(view.runs), view.missing
    lines = [
        f"{chapter.slug} at scale {scale}{f', only {part}' if part else ''}: {total:,} runs, "
        f"{total - len(missing):,} recorded, {len(missing):,} missing"
    ]
    tasks, place = ([] if part else probed.of(chapter, folder)), probed.place(folder)
    if tasks:
        left = len(probed.lacking(tasks, place))
        lines.append(f"  {len(tasks):,} measurements by probes, {left:,} missing: seconds to minutes each")
    if not missing:
        return "\n".join(lines)
    devices = [here, *sorted({r.device for r in readings if throughput.is_gpu(r.device)} - {here})]
    for device in devices:
        lines += _time(missing, device, readings, 1 if throughput.is_gpu(device) else grid._cores())
    if not any(map(throughput.is_gpu, devices)):
        lines.append("  GPU hours: no throughput was read on a GPU yet")
    return "\n".join([*lines, _memory(missing, sample), _disk(missing, folder)])


def _sample(*folders: Path) -> list[Record]:
    """Some records of each folder: their names are hashes, so every so many-th is as good as one drawn at random."""
    found = []
    for folder in dict.fromkeys(folders):
        paths = sorted(folder.glob("*.json"))
        found += [records.read(path) for path in paths[:: len(paths) // SAMPLE + 1]]
    return found


def _time(missing: Sequence[Config], device: str, readings: Sequence[Reading], cores: int) -> list[str]:
    """Hours on one device: a line for all, and one for each net where there are several."""
    unit = "GPU hours" if throughput.is_gpu(device) else "core hours"
    nets: dict[str, list[Config]] = {}
    for config in missing:
        nets.setdefault(throughput.net_of(config), []).append(config)
    hours, lines = 0.0, []
    for net, configs in nets.items():
        speed = throughput.speed(configs[0], device, readings)
        if speed is None:
            return [f"  {unit}: no throughput was read on {device} yet; run a few with --only, or make bench"]
        own = sum(map(throughput.images, configs)) / speed.speed / 3600
        hours += own
        said = f"extrapolated by multiply-adds from {speed.net}" if speed.extrapolated else "read with this net"
        lines.append(f"    {net}: {len(configs):,} runs, {_rough(own)} {unit} ({speed.speed:,.3g} images/s, {said})")
    wall = f"{_rough(hours / cores / 24)} days on {cores} cores" if cores > 1 else f"{_rough(hours / 24)} days on one"
    return [f"  at most {_rough(hours)} {unit} on {device}, {wall}", *lines]


def _rough(x: float) -> str:
    """An estimate with no more digits than it can have."""
    return f"{x:,.1f}" if x < 100 else f"{float(f'{x:.2g}'):,.0f}"


def _memory(missing: Sequence[Config], sample: Sequence[Record]) -> str:
    nets = {throughput.net_of(config) for config in missing}
    peaks: dict[str, float] = {}
    for record in sample:
        net = throughput.net_of(grid.config_of(record))
        peaks[net] = max(peaks.get(net, 0), record["peak_memory_mb"])
    said = [f"{net} {peaks[net]:,.0f} MiB" for net in sorted(nets & set(peaks))]
    unread = sorted(nets - set(peaks))
    said += [f"not read yet for {', '.join(unread)}"] if unread else []
    return f"  memory of a worker: {'; '.join(said)}"


def _disk(missing: Sequence[Config], folder: Path) -> str:
    """Records by the mean size of those that are there; decoded images by their count and size."""
    sizes = [path.stat().st_size for path in sorted(folder.glob("*.json"))[:100]]
    kept = f"{len(missing) * mean(sizes) / 1e6:,.1f} MB of records" if sizes else "records of a few kB each"
    decoded = {name: throughput.decoded_bytes(name) for name in sorted({c.data for c in missing})}
    return f"  disk: {kept}" + "".join(f", {n / 1e6:,.0f} MB of {name} decoded" for name, n in decoded.items() if n)
