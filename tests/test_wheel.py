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
MOST_LINES = 3200
NEEDED = ("numpy", "numpy.libs", "xxhash")

# README.md shows this between <!-- example --> marks; where it does, its text is what is tested.
EXAMPLE = """
from feather import Options, Request, hash_tokens

former = Options(policy="strict_stop", guard=False).make_former()
for name, prompt in {"a1": [1] * 2000, "b1": [2] * 2000, "a2": [1] * 2000 + [3] * 600}.items():
    former.insert(Request(name, hash_tokens(prompt, chunk_size=512)))
while (name := former.next()) is not None:
    former.add_to_batch(name)
print(sorted(former.running))  # ['a1', 'a2']: b1 would cost the batch the prefix that it shares
"""


def example() -> str:
    shown = re.search(r"<!-- example -->\s*```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    return shown[1] if shown else EXAMPLE


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
    product = [path for path in (ROOT / "feather").rglob("*") if path.suffix in (".py", ".json")]
    assert names == {path.relative_to(ROOT).as_posix() for path in product}
    assert any(name.startswith("feather/policies/trained/") for name in names)


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

    assert run(example()) == "['a', 'c']"
    assert run("import feather; print(feather.__file__)").startswith(str(packages))
    shipped = 'Options(policy="network", network="rtx-6000-ada-cascade", guard=False).make_policy()'
    assert run(f"from feather import Options; print({shipped}.trained['device'])") == "rtx-6000-ada"


def test_the_product_stays_small():
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / "feather").rglob("*.py"))
    assert lines <= MOST_LINES, f"feather/ has {lines} lines: what only measures belongs in lab/"
