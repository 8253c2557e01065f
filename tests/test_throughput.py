"""normbook.throughput: multiply-adds as torch counts them, speeds as read, and what is extrapolated says so."""

import json
from dataclasses import replace

import fakes
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from normbook import data, throughput, train
from normbook.errors import InputError
from normbook.throughput import Reading
from normbook.train import Config

RUN = Config("batch_norm", depth=16, batch_size=64, epochs=2, data="cifar10")


@pytest.mark.parametrize("config", [
    Config("batch_norm", steps=1, depth=16, width=0.5), Config("batch_norm", steps=1, depth=22, width=2),
    Config("none", steps=1, depth=10, width=1), Config("none", steps=1, model="resnet", depth=14),
    Config("none", steps=1, model="cnn", depth=6, width=2), Config("none", steps=1, model="mlp", depth=4, width=50),
    Config("none", steps=1, model="mlp", depth=2, width=10),
])  # fmt: skip
def test_multiply_adds_are_those_that_torch_counts(config):
    net = train.loop.build([config], data.load(config.data), "cpu")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, 1, 8, 8))
    assert throughput.multiply_adds(config) == counter.get_total_flops() / 2


def test_the_net_and_the_images_of_a_run():
    assert throughput.net_of(RUN) == "WRN-16-1 32x32" and throughput.images(RUN) == 2 * 703 * 64
    digits = replace(RUN, data="digits", n_train=100, epochs=3)
    assert throughput.net_of(digits) == "WRN-16-1 8x8" and throughput.images(digits) == 3 * 64
    assert throughput.images(replace(RUN, epochs=None, steps=5)) == 5 * 64
    small = replace(RUN, data="cifar10-jpeg@16")
    assert throughput.net_of(small) == "WRN-16-1 16x16"
    # each convolution has a quarter of the pixels, the classifier is the same
    ratio = throughput.multiply_adds(RUN) / throughput.multiply_adds(small)
    assert 3.99 < ratio < 4
    assert (
        throughput.decoded_bytes("cifar10-jpeg@16") == 60_000 * 3 * 16 * 16 and throughput.decoded_bytes("digits") == 0
    )


def test_known_sizes_are_those_of_the_data():
    shape, n, total = throughput.SIZES["digits"]
    found = data.load("digits")
    assert (shape, n, total) == (found.shape, len(found.train), 1797)
    parts = data.dataset.Counts((5000,) * 10, (1000,) * 10).split()[2]
    assert throughput.CIFAR[1:] == (len(parts[0]), sum(map(len, parts)))


def test_a_speed_is_of_one_core_on_a_cpu_and_of_the_whole_gpu():
    assert throughput.is_gpu("NVIDIA H200") and throughput.is_gpu("AMD Instinct MI300X")
    assert not throughput.is_gpu("AMD EPYC 9654") and not throughput.is_gpu("Intel(R) Xeon(R) Processor @ 2.50GHz")
    config = replace(RUN, data="digits", lr=0.1, n_train=640, epochs=1)
    found = [
        fakes.record(config, seconds=s, threads=2, device=d) for d in ("a cpu", "NVIDIA X") for s in (1.0, 2.0, 4.0)
    ]
    found.append(fakes.record(config, None, seconds=1e-3))  # a run that diverged stopped early: it says nothing
    cpu, gpu = throughput.of_records(found)
    assert (cpu.device, cpu.net, cpu.speed) == ("a cpu", "WRN-16-1 8x8", 640 / 2 / 2) and gpu.speed == 640 / 2


REPORT = {
    "device": "a cpu", "device_kind": "cpu", "threads": 2,
    "readings": [
        {"case": "WRN-16-1 32x32 batch 128", "way": "ours", "precision": "fp32", "seconds": [1.0, 2.0, 3.0], "steps": 5,
         "batch": 128},
        {"case": "WRN-16-1 32x32 batch 128", "way": "P0 textbook", "precision": "fp32", "seconds": [9.0], "steps": 5,
         "batch": 128},
        {"case": "ResNet-110 32x32 batch 16", "way": "ours", "precision": "bf16", "seconds": [2.0], "steps": 5,
         "batch": 16},
        {"case": "MLP-3 8x8 batch 64", "way": "ours", "precision": "fp32", "seconds": [2.0], "steps": 5, "batch": 64},
        {"case": "WRN-16-4 32x32 batch 128", "way": "ours", "precision": "fp32", "seconds": [], "steps": 5,
         "batch": 128},
    ],
}  # fmt: skip


def test_the_benchmarks_reports_are_read(tmp_path):
    assert throughput.of_reports(tmp_path / "none") == []
    (tmp_path / "a.json").write_text(json.dumps(REPORT))
    (tmp_path / "b.json").write_text(json.dumps({**REPORT, "device": "NVIDIA X", "device_kind": "cuda"}))
    found = {(r.device, r.net): r for r in throughput.of_reports(tmp_path)}
    assert set(found) == {(d, net) for d in ("a cpu", "NVIDIA X") for net in ("WRN-16-1 32x32", "ResNet-110-1 32x32")}
    one = found["a cpu", "WRN-16-1 32x32"]
    assert one.speed == 5 * 128 / 2 / 2 and found["NVIDIA X", "WRN-16-1 32x32"].speed == 5 * 128 / 2
    assert one.multiply_adds == throughput.multiply_adds(RUN) and one.precision == "fp32"
    net = found["a cpu", "ResNet-110-1 32x32"]
    assert net.multiply_adds == throughput.multiply_adds(replace(RUN, model="resnet", depth=110))
    assert throughput.net_of(replace(RUN, model="resnet", depth=110)) == net.net


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"device_kind": "cpu", "threads": 2, "readings": [{}]}'])
def test_a_damaged_report_is_one_line(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match="a.json: not a report of the benchmark") as error:
        throughput.of_reports(tmp_path)
    assert "\n" not in str(error.value)


def test_what_was_read_with_the_net_goes_before_what_is_extrapolated_from_the_nearest_one():
    macs = throughput.multiply_adds(RUN)
    near = Reading("a cpu", "WRN-16-2 32x32", "fp32", 4 * macs, 100.0)
    far = Reading("a cpu", "WRN-100-1 32x32", "fp32", 8 * macs, 50.0)
    own = Reading("a cpu", "WRN-16-1 32x32", "fp32", macs, 333.0)
    other = Reading("a gpu", "WRN-16-1 32x32", "fp32", macs, 9999.0)
    found = throughput.speed(RUN, "a cpu", [far, near, other])
    assert found == throughput.Speed(400.0, "WRN-16-2 32x32", True)
    assert throughput.speed(RUN, "a cpu", [far, near, own, other]) == throughput.Speed(333.0, "WRN-16-1 32x32", False)
    assert throughput.speed(RUN, "another cpu", [own]) is None
    quick = replace(own, precision="bf16", speed=1.0)
    assert throughput.speed(RUN, "a cpu", [quick, near]).speed == 400.0  # the same precision goes first
    assert throughput.speed(RUN, "a cpu", [quick]).speed == 1.0
