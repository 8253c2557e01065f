"""normbook.cluster: how a grid is handed out, without Ray; and with it, on two nodes of which one is killed."""

import contextlib
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import fakes
import pytest
import torch

from normbook import cli, cluster, data, grid, records, train
from normbook.errors import InputError
from normbook.train import Config

torch.set_num_threads(1)
SOURCE = Path(cluster.__file__).parents[1]
TINY = Config("none", lr=0.1, depth=10, width=0.25, batch_size=8, steps=2, n_train=16, evaluate=("test",))
MIXED = [*grid.seeds(TINY, 0, 2), replace(TINY, arm="batch_norm"), replace(TINY, lr=0.05)]


def name_of(config):
    return records.name_of(asdict(config), data.load(config.data).content_hash)


def names(configs):
    return [name_of(config) for config in configs]


# ---- the part of a GPU


def part(members=1, **changes):
    config = replace(TINY, **changes)
    return cluster.gpus({str(i): replace(config, seed=(0, i)) for i in range(members)})


def test_a_bundle_takes_the_part_of_a_gpu_that_one_layer_can_keep_busy(monkeypatch):
    assert part() == part(9) == 1 / 8 and part(9, width=1, batch_size=32) == 1 / 4
    assert part(width=1, batch_size=128) == 1 / 8  # 9 * 16^2 * 8 * 8 * 128 = 1.9e7 of 2e8
    assert [part(n, width=1, batch_size=128) for n in (2, 3, 6, 9)] == [1 / 4, 1 / 2, 1.0, 1.0]
    assert part(9, model="mlp", depth=100, width=100, batch_size=60, weight_decay=0) == 1 / 8
    assert part(9, model="mlp", width=2048, batch_size=60, weight_decay=0) == 1.0
    assert part(width=1, batch_size=128, depth=1000) == 1 / 8, "layers come one after the other"
    monkeypatch.setattr(data, "load", lambda name: SimpleNamespace(shape=(3, 32, 32)))
    assert part(width=1, batch_size=64) == 1.0 and part(width=0.25, batch_size=64) == 1 / 8
    assert part(9, width=4, batch_size=128) == 1.0


# ---- Ray in this process


class RayError(Exception):
    pass


class RayTaskError(RayError):
    """As Ray's own, it is of its cause's class too, and its text is the traceback on the node."""

    @staticmethod
    def of(cause):
        kind = type("RayTaskError", (RayTaskError, type(cause)), {"__str__": lambda self: f"a traceback\n{cause}"})
        error = kind()
        error.cause = cause
        return error


class Ray:
    """What cluster.py uses of Ray, in this process: a task is computed when it is waited for, the last one first."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, **resources):
        self.resources, self.tasks, self.options, self.most = resources or {"CPU": 2.0}, {}, [], 0
        self.stopped = False

    def cluster_resources(self):
        return self.resources

    def init(self, address, **options):
        self.address = address

    def shutdown(self):
        self.stopped = True

    def put(self, value):
        return ("put", value)

    def remote(self, **options):
        return lambda function: SimpleNamespace(remote=lambda *given: self._submit(options, function, given))

    def _submit(self, options, function, arguments):
        self.options.append(options)
        ref = len(self.options)
        self.tasks[ref] = (function, arguments)
        self.most = max(self.most, len(self.tasks))
        return ref

    def wait(self, refs, timeout):
        assert refs and timeout == cluster.PATIENCE
        return refs[-1:], refs[:-1]

    def get(self, ref):
        if isinstance(ref, tuple):
            return ref[1]
        function, arguments = self.tasks.pop(ref)
        try:
            return function(*arguments)
        except RayError:
            raise
        except Exception as error:
            raise RayTaskError.of(error) from None


@pytest.fixture
def ray(monkeypatch):
    fake = Ray()
    monkeypatch.setattr(cluster, "_ray", lambda: fake)
    monkeypatch.setattr(cluster, "PATIENCE", 0.01)
    return fake


def on_ray(configs, folder, **how):
    with cluster.connect("ray://head:10001") as engine:
        return grid.run(configs, folder, engine=engine, **how)


def test_every_run_is_recorded_once_by_the_driver_and_equals_that_of_the_worker_processes(tmp_path, ray, monkeypatch):
    written, honest = [], records.write
    monkeypatch.setattr(records, "write", lambda folder, r: written.append(r["name"]) or honest(folder, r))
    found = on_ray(MIXED, tmp_path)
    assert [r["name"] for r in found] == names(MIXED) and sorted(written) == sorted(names(MIXED))
    assert ray.address == "ray://head:10001" and ray.stopped
    assert ray.options == [{"num_cpus": 1, "num_gpus": 0, "max_retries": cluster.RETRIES}] * len(
        grid.bundles(dict(enumerate(MIXED)))
    )
    bundles = grid.bundles(dict(zip(names(MIXED), MIXED, strict=True)))
    local = {r["name"]: r["final"] for b in bundles for r in map(records.make, train.run([b[n] for n in sorted(b)]))}
    assert {r["name"]: r["final"] for r in found} == local
    written.clear()
    assert on_ray(MIXED, tmp_path) == found and written == []


def test_no_more_is_handed_out_than_twice_what_the_cluster_computes_at_once(tmp_path, ray):
    configs = [replace(TINY, batch_size=4 + i) for i in range(9)]
    on_ray(configs, tmp_path)
    assert ray.most == 4 and len(ray.options) == 9 and ray.tasks == {}


def test_on_gpus_a_bundle_takes_its_part_of_one(tmp_path, ray, monkeypatch):
    ray.resources = {"CPU": 8.0, "GPU": 1.0}
    honest, devices = cluster.work, []
    monkeypatch.setattr(cluster, "work", lambda b, device, *a: devices.append(device) or honest(b, "cpu", *a))
    on_ray([replace(TINY, batch_size=4 + i // 2, seed=(0, i)) for i in range(24)], tmp_path)
    assert {options["num_gpus"] for options in ray.options} == {1 / 8} and set(devices) == {"cuda"}
    assert ray.most == 12  # bundles: room for twice eight


def test_a_cluster_that_grows_is_given_more(tmp_path, ray, monkeypatch):
    def wait(refs, timeout):
        ray.resources = {"CPU": 3.0}
        return Ray.wait(ray, refs, timeout)

    monkeypatch.setattr(cluster, "PATIENCE", 0.0)
    monkeypatch.setattr(ray, "wait", wait)
    ray.resources = {}  # a cluster that is still to get its nodes
    on_ray([replace(TINY, batch_size=4 + i) for i in range(9)], tmp_path)
    assert ray.most == 6


HOLDER = """
import fcntl, os, sys, time
folder, offset, finished = sys.argv[1], int(sys.argv[2]), sys.argv[3]
with open(folder + "/.lock", "ab") as lock:
    fcntl.lockf(lock, fcntl.LOCK_EX, 1, offset)
    print("locked", flush=True)
    while len([name for name in os.listdir(folder) if name.endswith(".json")]) < 3:
        time.sleep(0.01)
    time.sleep(0.2)
    if finished:
        os.replace(finished, folder + "/" + os.path.basename(finished))
"""


@pytest.mark.parametrize("finishes", [True, False])
def test_a_run_that_another_driver_has_is_waited_for_and_done_only_if_that_driver_dies(tmp_path, ray, finishes):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir(), theirs.mkdir()
    record = on_ray([MIXED[0]], theirs)[0]
    ray.options.clear()
    finished = str(theirs / f"{record['name']}.json") if finishes else ""
    command = [sys.executable, "-c", HOLDER, str(ours), str(int(record["name"][:15], 16)), finished]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "locked\n"
        found = on_ray(MIXED, ours)
    assert [r["name"] for r in found] == names(MIXED) and (found[0]["start"] == record["start"]) == finishes
    assert len(ray.options) == (2 if finishes else 3)


def test_what_is_computed_is_locked_for_others_until_its_record_is_there(tmp_path, ray, monkeypatch):
    asked = """
import fcntl, sys
with open(sys.argv[1] + "/.lock", "ab") as lock:
    for offset in map(int, sys.argv[2:]):
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)
            print("free")
        except BlockingIOError:
            print("locked")
"""
    seen, honest = [], cluster.work

    def work(bundle, *rest):
        places = [str(int(name[:15], 16)) for name in names(MIXED)]
        told = subprocess.run([sys.executable, "-c", asked, tmp_path, *places], capture_output=True, text=True)
        there = [(tmp_path / f"{name}.json").exists() for name in names(MIXED)]
        seen.append([(free == "free", was) for free, was in zip(told.stdout.split(), there, strict=True)])
        return honest(bundle, *rest)

    monkeypatch.setattr(cluster, "work", work)
    on_ray(MIXED, tmp_path)
    assert len(seen) > 1 and all(free == was for look in seen for free, was in look)  # all four fit the cluster


def test_refresh_runs_again_what_older_code_computed(tmp_path, ray):
    first = on_ray(MIXED[:2], tmp_path)
    records.write(tmp_path, {**first[0], "code": "older"})
    ray.options.clear()
    found = on_ray(MIXED[:2], tmp_path, refresh=True)
    assert len(ray.options) == 1 and {r["code"] for r in found} == {records.code_hash()}


# ---- data


@pytest.fixture
def pets(tmp_path, monkeypatch):
    """The name of a data set of twelve small images that this process knows the place of."""
    from PIL import Image

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for split, n in (("train", 4), ("test", 2)):
        for k, kind in enumerate(("cat", "dog")):
            (tmp_path / "pets" / split / kind).mkdir(parents=True)
            for i in range(n):
                Image.new("RGB", (8, 8), (40 * i, 100 * k, 7)).save(tmp_path / "pets" / split / kind / f"{i}.png")
    monkeypatch.setattr(data, "places", dict(data.places))
    monkeypatch.setattr("normbook.data.sources.places", data.places)
    return data.use(f"imagefolder@4:{tmp_path / 'pets'}")


def test_images_travel_to_a_node_that_has_no_disk_in_common_and_are_kept_there_once(pets, tmp_path, ray, monkeypatch):
    config = replace(TINY, data=pets, batch_size=2, n_train=4)
    configs = [replace(config, lr=lr, arm=arm) for lr in (0.1, 0.2) for arm in ("none", "batch_norm")]
    expected, driver, got, honest = data.load(pets), data.places[pets], [], cluster.work

    def elsewhere(bundle, device, code, place):
        monkeypatch.setenv("HOME", str(tmp_path / "node"))
        data.places.pop(pets)
        found = honest(bundle, device, code, (Path("/no/such/place.npy"), *place[1:]))
        got.append(data.places[pets])
        data.places[pets] = driver
        return found

    monkeypatch.setattr(cluster, "work", elsewhere)
    (tmp_path / "out").mkdir()
    found = on_ray(configs, tmp_path / "out")
    assert [r["name"] for r in found] == names(configs)
    kept = tmp_path / "node" / ".cache" / "normbook" / f"cluster-{expected.content_hash}.npy"
    assert set(got) == {kept} and len(got) > 1
    there = data.cache.read(kept)
    assert there.name == pets and there.content_hash == expected.content_hash
    assert torch.equal(there.train.pixels, expected.train.pixels)
    assert torch.equal(there.test.labels, expected.test.labels)


def test_the_drivers_own_copy_is_read_where_it_is_there(pets, ray, monkeypatch, tmp_path):
    monkeypatch.setattr(ray, "get", lambda ref: pytest.fail("the images were sent"))
    cluster._keep(pets, *cluster.Cluster(ray, "ray", "cpu")._place(pets))
    assert not list(Path(data.places[pets]).parent.glob("cluster-*"))


def test_a_node_with_other_images_is_bad_input(tmp_path, ray, monkeypatch):
    honest = cluster.work
    monkeypatch.setattr(cluster, "work", lambda *a: [records.make({**r, "data_hash": "0" * 16}) for r in honest(*a)])
    with pytest.raises(InputError, match="a node of ray://head:10001 has other images"):
        on_ray(MIXED, tmp_path)
    assert not list(tmp_path.glob("*.json"))


# ---- what goes wrong


@pytest.mark.parametrize(("on", "said"), [
    ("spark://head:7077", "give ray://HOST:PORT"), ("ray://head", "give ray://HOST:PORT"), ("Ray", "give ray://HOST"),
])  # fmt: skip
def test_another_address_is_bad_input(on, said):
    with pytest.raises(InputError, match=said), cluster.connect(on):
        pass


def test_without_ray_the_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match="requirements-cluster.lock"), cluster.connect("ray"):
        pass


def test_a_cluster_that_does_not_answer_and_one_without_a_gpu_are_bad_input(ray, monkeypatch):
    with pytest.raises(InputError, match="no node of ray://head:1 has a GPU"), cluster.connect("ray://head:1", "cuda"):
        pass
    assert ray.stopped
    with pytest.raises(InputError, match="did you mean 'cuda'"), cluster.connect("ray://head:1", "cude"):
        pass

    def init(address, **options):
        raise ConnectionError("nobody\nthere")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(InputError, match=r"answers at ray://head:1 \(nobody there\)"), cluster.connect("ray://head:1"):
        pass


@pytest.mark.parametrize(("error", "said"), [
    (InputError("the namespace 'no.such' cannot be imported"), "^the namespace 'no.such' cannot be imported$"),
    (MemoryError("too\nmuch"), r"a worker ran out of memory \(too much\); finished runs are kept"),
    (OSError(28, "No space left on device", "/x"), "/x: No space left on device; finished runs are kept"),
    (RayError("the node\ndied"), r"lost a bundle of runs, more than 3 times \(the node died\); finished runs are"),
    (RuntimeError("failed: No module named 'normbook'"), "a node of .* lacks a module .No module named .norm"),
])  # fmt: skip
def test_an_error_on_a_node_is_one_line_and_finished_runs_are_kept(tmp_path, ray, monkeypatch, error, said):
    honest = cluster.work

    def work(bundle, *rest):
        if any(c.arm == "batch_norm" for c in bundle.values()):
            raise error
        return honest(bundle, *rest)

    monkeypatch.setattr(cluster, "work", work)
    monkeypatch.setattr(ray, "wait", lambda refs, timeout: (refs[:1], refs[1:]))
    configs = sorted(MIXED, key=lambda c: c.arm == "batch_norm")
    with pytest.raises(InputError, match=said) as caught:
        on_ray([replace(c, steps=1 if c.arm == "batch_norm" else 2) for c in configs], tmp_path)
    assert "\n" not in str(caught.value) and ray.stopped
    assert len(list(records.read_all(tmp_path))) == 3


def test_a_lost_connection_is_one_line_and_an_unknown_error_is_itself(tmp_path, ray, monkeypatch):
    monkeypatch.setattr(ray, "wait", lambda *a, **k: (_ for _ in ()).throw(ConnectionError("gone")))
    with pytest.raises(InputError, match=r"the connection to ray://head:10001 is lost \(gone\); finished runs are"):
        on_ray(MIXED, tmp_path)
    monkeypatch.undo()
    fake = Ray()
    monkeypatch.setattr(cluster, "_ray", lambda: fake)
    monkeypatch.setattr(cluster, "work", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        on_ray(MIXED, tmp_path)


def test_a_node_with_other_code_computes_nothing(tmp_path, ray, monkeypatch):
    monkeypatch.setattr(train, "run", lambda *a: pytest.fail("something was computed"))
    with pytest.raises(InputError, match="has other code of normbook than this machine"):
        cluster.work(dict(zip(names(MIXED), MIXED, strict=True)), "cpu", "older", None)


# ---- the commands


@pytest.fixture
def chapter(tmp_path, monkeypatch):
    return fakes.grids(monkeypatch, tmp_path)


def test_the_grids_command_runs_on_a_cluster(chapter, ray, capsys):
    assert grid.main(["5", "--out", str(chapter / "out"), "--on", "ray://head:1", "--seed", "7"]) == 0
    assert capsys.readouterr().out == f"4 records in {chapter / 'out'}\n" and ray.stopped and ray.options
    assert grid.main(["5", "--out", str(chapter / "out"), "--on", "ray://head:1", "--device", "cuda"]) == 2
    assert "no node of ray://head:1 has a GPU" in capsys.readouterr().err


def test_the_grid_of_a_chapter_is_run_on_the_cluster_before_the_chapter_which_gets_no_other_parameter(
    chapter, ray, monkeypatch, capsys
):
    ray.resources = {"CPU": 1.0, "GPU": 1.0}
    honest, given = cluster.work, []
    monkeypatch.setattr(cluster, "work", lambda bundle, device, *rest: honest(bundle, "cpu", *rest))

    def execute(path, folder, parameters):
        there = [grid.config_of(r) for r in records.read_all(chapter / "out" / "records")]
        given.append((parameters, sorted(c.seed for c in there), ray.stopped))
        raise InputError("executed")

    monkeypatch.setattr("normbook.chapters.execute", execute)
    command = ["normbook", "run", "5", "--on", "ray://head:1", "--out", str(chapter / "out"), "--device", "cuda"]
    monkeypatch.setattr(sys, "argv", [*command, "--scale", "cifar"])
    with pytest.raises(SystemExit):
        cli.main()
    parameters = {
        "scale": "cifar", "seed": 0, "device": "auto", "precision": "auto", "norm": "normbook.norms", "data": "",
    }  # fmt: skip
    assert given == [(parameters, [(0, 0), (0, 1), (0, 1000), (0, 1000)], True)]
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2 and len(given) == 1
    assert "--on are for scale cifar or paper: scale quick keeps no runs" in capsys.readouterr().err


def test_without_on_nothing_of_ray_is_imported(tmp_path):
    script = """
import sys
from normbook import cli, cluster, grid
from normbook.train import Config
if __name__ == "__main__":
    from pathlib import Path
    grid.run([Config("none", lr=0.1, model="mlp", depth=4, width=8, steps=1, n_train=64)], Path(sys.argv[1]), workers=1)
    print([name for name in sys.modules if name.split(".")[0] == "ray"])
"""
    path = tmp_path / "script.py"
    path.write_text(script)
    done = subprocess.run([sys.executable, path, tmp_path], capture_output=True, text=True, env=environment())
    assert done.returncode == 0 and done.stdout == "[]\n", done.stderr


def environment(**more):
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")]), **more}


# ---- a real cluster of two nodes


NODES = """
import sys
from ray.cluster_utils import Cluster

port, agent = map(int, sys.argv[1:])
head = {"num_cpus": 1, "include_dashboard": False, "ray_client_server_port": port, "runtime_env_agent_port": agent}
cluster = Cluster(True, head_node_args=head)
other = cluster.add_node(num_cpus=1)
print(other.node_id, flush=True)
for line in sys.stdin:
    cluster.remove_node(other, allow_graceful=False)
    print("killed", flush=True)
cluster.shutdown()
"""

DRIVER = """
import os, sys, time
from pathlib import Path
from normbook import cluster, grid, records
from normbook.train import Config

folder, log, on = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
compute, write = cluster.work, records.write

def say(*words):
    with open(log, "a") as file:
        file.write(" ".join(words) + "\\n")

def work(bundle, *rest):  # on a node
    import ray

    node = ray.get_runtime_context().get_node_id()
    say("begin", node, *bundle)
    found = compute(bundle, *rest)
    time.sleep(1)
    say("end", node, *bundle)
    return found

def written(folder, record):
    path = write(folder, record)
    say("write", str(os.getpid()), record["name"])
    return path

cluster.work, records.write = work, written
ONE = Config("none", lr=0.01, model="mlp", depth=4, width=8, steps=2, n_train=64, evaluate=())
CONFIGS = [Config(**{**vars(ONE), "batch_size": 8 + i // 2, "seed": (0, i)}) for i in range(24)]
if __name__ == "__main__":
    with cluster.connect(on) as engine:
        print(*[record["name"] for record in grid.run(CONFIGS, folder, engine=engine)])
"""


def state(folder):
    """What would change if a record were written again: inode and time of each."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("*.json")}


def said(log, what):
    """[[who, name, ...]] of the lines that begin with a word."""
    lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return [line[1:] for line in lines if line[0] == what]


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def wait_for(condition, process, seconds=300):
    limit = time.monotonic() + seconds
    while not condition() and time.monotonic() < limit and process.poll() is None:
        time.sleep(0.02)
    assert condition(), f"not within {seconds} s; exit code {process.poll()}"


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: requirements-cluster.lock")
def test_on_two_nodes_a_driver_and_a_node_are_killed_and_every_run_is_recorded_once(tmp_path):
    folder, log, script = tmp_path / "records", tmp_path / "log", tmp_path / "driver.py"
    folder.mkdir()
    script.write_text(DRIVER)
    (tmp_path / "nodes.py").write_text(NODES)
    port = free_port()
    slowly = {"RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S": "240"}  # 30 s are little on a busy machine
    given = environment(RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled", GRPC_ENABLE_FORK_SUPPORT="0", **slowly)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": given}
    started = []

    def drive(err):
        command = [sys.executable, script, folder, log, f"ray://127.0.0.1:{port}"]
        with (tmp_path / err).open("w") as stream:
            started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stream, text=True, env=given))
        return started[-1]

    with (tmp_path / "nodes").open("w") as stream:
        command = [sys.executable, tmp_path / "nodes.py", str(port), str(free_port())]
        nodes = subprocess.Popen(command, stderr=stream, start_new_session=True, **pipes)
    try:
        other = nodes.stdout.readline().strip()
        assert re.fullmatch("[0-9a-f]{20,}", other), (tmp_path / "nodes").read_text()

        killed = drive("first")
        wait_for(lambda: len(state(folder)) >= 3, killed)
        killed.kill()
        killed.wait()
        before = state(folder)
        assert len(list(records.read_all(folder))) == len(before) < 24

        driver = drive("second")
        begun, ended = len(said(log, "begin")), len(said(log, "end"))

        def busy():  # bundles that the other node has begun, and not ended, for the second driver
            names = [line[1:] for line in said(log, "end")[ended:]]
            return [line[1:] for line in said(log, "begin")[begun:] if line[0] == other and line[1:] not in names]

        wait_for(lambda: len(state(folder)) > len(before) and busy(), driver)
        nodes.stdin.write("kill\n")
        nodes.stdin.flush()
        lost = busy()
        assert nodes.stdout.readline() == "killed\n" and lost
        out, _ = driver.communicate(timeout=300)
        assert driver.returncode == 0, (tmp_path / "second").read_text()
    finally:
        nodes.stdin.close()  # it ends the cluster
        with contextlib.suppress(subprocess.TimeoutExpired):
            nodes.wait(timeout=60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(nodes.pid, signal.SIGKILL)
        for one in started:
            one.kill()
        for one in (*started, nodes):
            one.wait()
            one.stdout.close()
    assert len(set(out.split())) == 24 and set(out.split()) == {path.stem for path in folder.glob("*.json")}
    assert [record["name"] for record in records.read_all(folder)] == sorted(out.split())
    assert before.items() <= state(folder).items(), "a finished run was written again"
    written = [name for _, name in said(log, "write")]
    assert sorted(written) == sorted(out.split()), "a run was not recorded exactly once"
    assert not list(folder.glob(".*.tmp"))
    again = [line for line in said(log, "begin")[begun:] if line[1:] in lost and line[0] != other]
    assert again, "what the dead node computed was not begun again on the other one"
