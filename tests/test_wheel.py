"""What ``pip install .`` brings: the product alone, which runs with numpy and xxhash and nothing else."""

import re
import shutil
import subprocess
import sys
import venv
from importlib.util import find_spec
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
MOST_LINES = {"scheduler": 4300, "attention": 1065, "ray": 255}
NEEDED = ("numpy", "numpy.libs", "xxhash")


def example() -> tuple[str, str]:
    """The code that README.md shows, and what it says that it prints."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.search(r"<!-- example -->\s*```python\n(.*?)```", text, re.DOTALL)[1]
    return code, re.search(r"^print\(.*\)\s+# (\[.*?\])", code, re.MULTILINE)[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that nothing of an earlier build gets into it, and nothing of this one stays."""
    folder = tmp_path_factory.mktemp("wheel")
    left_out = shutil.ignore_patterns(".*", "*.egg-info", "build", "dist", "data", "figures", "notebooks", "out", "__pycache__")
    shutil.copytree(ROOT, folder / "checkout", ignore=left_out)
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder)]
    built = subprocess.run(command, cwd=folder / "checkout", capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (found,) = folder.glob("*.whl")
    return found


def test_it_holds_the_product_and_its_data_and_nothing_of_the_laboratory(wheel):
    names = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    product = [path for path in (ROOT / "feather").rglob("*") if path.suffix == ".py"]
    assert names == {path.relative_to(ROOT).as_posix() for path in product}


def test_the_example_runs_in_an_empty_environment_with_numpy_and_xxhash(wheel, tmp_path):
    venv.create(tmp_path / "empty", with_pip=False)
    python = tmp_path / "empty" / "bin" / "python"
    (packages,) = (tmp_path / "empty" / "lib").glob("python*/site-packages")
    for name in NEEDED:
        present = Path(find_spec(name.split(".")[0]).origin).parents[1] / name
        if present.exists():
            (packages / name).symlink_to(present)
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "--quiet", str(wheel)]
    subprocess.run(install, check=True, cwd=tmp_path)

    def run(code: str) -> str:
        done = subprocess.run([python, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    code, printed = example()
    assert run(code) == printed
    assert run("import feather; print(feather.__file__)").startswith(str(packages))


def test_the_product_stays_small():
    lines = dict.fromkeys(MOST_LINES, 0)
    for path in (ROOT / "feather").rglob("*.py"):
        lines[path.parent.name if path.parent.name in lines else "scheduler"] += len(path.read_text(encoding="utf-8").splitlines())
    for part, most in MOST_LINES.items():
        assert lines[part] <= most, f"feather/ has {lines[part]} lines for the {part}: what only measures belongs in lab/"
