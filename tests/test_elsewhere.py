"""On other people's machines: Jupyter kernels of other names, locales that are not UTF-8, folders with blanks and foreign letters, checkouts
that cannot be written, two runs at once, disks that fill up."""

import ast
import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab import book, machine
from lab.artifact import cli, plan, report
from lab.artifact import notebooks as runner
from lab.files import replace

ROOT = Path(__file__).parents[1]
GOOD = "import pathlib; pathlib.Path(out, 'ran').open('a').write(name)"
COMMAND = ["--backend", "cpu", "--profile", "smoke"]

# Every file is opened with a stated encoding


def sources():
    """(Where, code) of all that is not a test."""
    for folder in ("feather", "lab", "benchmarks", "notebooks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
        for path in sorted((ROOT / folder).glob("*.ipynb")):
            for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
                if cell["cell_type"] == "code":
                    code = "".join(cell["source"])
                    yield f"{path.name}, cell {number}", "\n".join(line for line in code.splitlines() if not line.startswith(("%", "!")))


def unstated(code):
    """The lines at which text is read or written in whatever encoding the locale has."""
    found = []
    for call in ast.walk(ast.parse(code)):
        if not isinstance(call, ast.Call):
            continue
        function = call.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        owner = ast.unparse(function.value) if isinstance(function, ast.Attribute) else ""
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        if "encoding" in given or None in given:
            continue
        if name == "open" and owner not in ("Image", "os", "webbrowser"):
            place = 0 if owner and owner not in ("io", "gzip", "codecs") else 1
            mode = given.get("mode", call.args[place] if len(call.args) > place else ast.Constant("rb" if owner == "gzip" else "r"))
            binary = isinstance(mode, ast.Constant) and ("b" in str(mode.value) or owner == "gzip" and "t" not in str(mode.value))
        elif name in ("read_text", "write_text"):
            binary = len(call.args) > (name == "write_text")
        elif name in ("run", "Popen", "check_output", "getoutput"):
            binary = not ({"text", "universal_newlines"} & given.keys())
        elif name in ("NamedTemporaryFile", "TemporaryFile", "SpooledTemporaryFile", "fdopen"):
            mode = given.get("mode", call.args[0] if call.args else ast.Constant("w+b"))
            binary = isinstance(mode, ast.Constant) and "b" in str(mode.value)
        elif name.endswith("FileHandler") or name in ("TextIOWrapper", "FileInput"):
            binary = len(call.args) > 1
        else:
            continue
        if not binary:
            found.append(call.lineno)
    return found


def test_no_file_is_read_or_written_in_the_locales_encoding():
    assert [f"{where}, line {line}" for where, code in sources() for line in unstated(code)] == []


@pytest.mark.parametrize("code", [
    "open('x')", "open('x', 'w')", "path.open()", "path.open('a')", "path.read_text()", "path.write_text('x')", "open('x', mode)", "gzip.open(p, 'rt')",
    "subprocess.run(c, text=True)", "subprocess.Popen(c, universal_newlines=True)", "tempfile.NamedTemporaryFile('w')", "logging.FileHandler('x')",
])  # fmt: skip
def test_the_check_finds_what_it_looks_for(code):
    assert unstated(code) == [1]


@pytest.mark.parametrize("code", [
    "open('x', 'rb')", "open('x', encoding='utf-8')", "path.open('wb')", "path.read_text('utf-8')", "gzip.open(p)", "Image.open(p)", "path.write_bytes(x)",
    "subprocess.run(c)", "tempfile.TemporaryFile(dir=x)", "subprocess.run(c, text=True, encoding='utf-8')",
])  # fmt: skip
def test_and_nothing_else(code):
    assert unstated(code) == []


# Jupyter


def kernel(folder, name, marker):
    """A kernel of another Python, which leaves a mark where it is used."""
    other = folder / "other python"
    other.parent.mkdir(parents=True, exist_ok=True)
    other.write_text(f'#!/bin/sh\ntouch "{marker}"\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    other.chmod(0o755)
    spec = folder / "kernels" / name / "kernel.json"
    spec.parent.mkdir(parents=True)
    argv = [str(other), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.write_text(json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"}), encoding="utf-8")


@pytest.mark.parametrize("variable", ["JUPYTER_PATH", "JUPYTER_DATA_DIR", "none at all"])
def test_notebooks_run_with_the_python_that_runs_the_artifact(variable, notebooks, tmp_path, monkeypatch):
    """A hub's kernel of the same name, one in the user's folder that comes first, or no kernel of that name anywhere."""
    marker = tmp_path / "another python was used"
    kernel(tmp_path / "jupyter", "python3", marker)
    if variable == "none at all":
        monkeypatch.setattr("jupyter_client.kernelspec.KernelSpecManager.get_kernel_spec", no_kernel)
    else:
        monkeypatch.setenv(variable, str(tmp_path / "jupyter"))
        monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    notebooks(one10="import sys, pathlib; pathlib.Path(out, 'python').write_text(sys.executable)")
    assert cli.main([*COMMAND, "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "python").read_text(encoding="utf-8") == sys.executable and not marker.exists()


def test_a_notebook_that_names_another_kernel_runs_too(notebooks, tmp_path):
    folder = notebooks(one10=GOOD)
    path = folder / "10_one.ipynb"
    path.write_text(path.read_text(encoding="utf-8").replace('"python3"', '"conda-env-other-py"'), encoding="utf-8")
    assert cli.main([*COMMAND, "--out", str(tmp_path / "out")]) == 0


def no_kernel(self, name):
    raise LookupError(f"no kernel {name!r}")


# Two runs into one folder


def command_line(folder, arguments):
    """The command in another process, over the made-up notebooks of ``folder``."""
    code = (
        "import pathlib, sys; from lab import book; from lab import machine; from lab.artifact import cli; machine.speak_any_locale(); "
        f"book.NOTEBOOKS = pathlib.Path({str(folder)!r}); "
        "book.ENTRIES = {path.stem: book.Entry(path.stem, {'cpu': [2 / 60] * 3}) for path in sorted(book.NOTEBOOKS.glob('*.ipynb'))}; "
        f"sys.exit(cli.main({arguments!r}))"
    )
    return [sys.executable, "-c", code]


def test_a_second_run_into_a_folder_is_refused_with_the_firsts_id_until_that_ends(notebooks, executed, tmp_path, capsys):
    out = tmp_path / "out"
    folder = notebooks(one10="import pathlib, time; pathlib.Path(out, 'began').touch(); time.sleep(120)")
    first = subprocess.Popen(
        command_line(folder, [*COMMAND, "--out", str(out)]), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for _ in range(600):
        if (out / "began").exists():
            break
        time.sleep(0.05)
    notebooks(one10=GOOD)
    (tmp_path / "link").symlink_to(out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    for same in (out, tmp_path / "link", out / "state" / ".."):
        for more in ([], ["--resume"], ["--check"]):
            assert cli.main([*COMMAND, "--out", str(same), *more]) == 2
            said = capsys.readouterr().err
            assert (
                f"process {first.pid} on " in said
                and "writes there: wait for its end, or choose another folder" in said
                and said.count("\n") == 1
            )
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert cli.main([*COMMAND, "--out", str(tmp_path / "other")]) == 0, "another folder is free"
    first.kill()
    first.wait(30)
    time.sleep(0.5)  # its notebook ends with it
    assert cli.main([*COMMAND, "--out", str(out)]) == 0, "a run that was killed holds nothing"
    assert cli.main([*COMMAND, "--out", str(out), "--resume"]) == 0, "and one run can follow another"


# A full disk


def full(*arguments, **named):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def executed(monkeypatch, tmp_path):
    """Notebooks are not run but noted, in the order in which they would be: returns a function that tells those since the last time."""
    noted = tmp_path / "noted"
    noted.touch()

    def execute(path, target, parameters, **named):
        with noted.open("a", encoding="utf-8") as file:
            file.write(f"{path.stem}\n")
        shutil.copy(path, target)

    def names():
        told = noted.read_text(encoding="utf-8").split()
        noted.write_text("", encoding="utf-8")
        return told

    monkeypatch.setattr("papermill.execute_notebook", execute)
    return names


@pytest.mark.parametrize("when", ["a record", "a log", "the notebook", "the report", "the claims"])
def test_a_disk_that_fills_up_in_mid_run_gets_a_line_and_resume_goes_on(when, notebooks, executed, tmp_path, monkeypatch, capsys):
    import papermill

    out, opened, execute = tmp_path / "out", Path.open, papermill.execute_notebook
    notebooks(one10=GOOD, two11=GOOD, three20=GOOD)
    patches = {
        "a record": (runner, "replace", lambda path, text: full() if "11" in path.name else replace(path, text)),
        "a log": (Path, "open", lambda path, *rest, **named: full() if path.name == "11_two.log" else opened(path, *rest, **named)),
        "the notebook": (papermill, "execute_notebook", lambda path, *rest, **named: full() if "11" in path.name else execute(path, *rest, **named)),
        "the report": (report, "replace", full),
        "the claims": (os, "replace", lambda one, other: full() if "claims" in str(other) else os.rename(one, other)),
    }  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(*patches[when])
        assert cli.main([*COMMAND, "--out", str(out)]) == 1
    said = capsys.readouterr()
    assert "No space left on device" in said.err and "Traceback" not in said.err and len(said.err.splitlines()) == 1
    if when != "the notebook":
        assert "what had finished is kept, and the same command with --resume goes on" in said.err
    assert (out / "state" / "10_one.json").exists() and not list(out.rglob("*.partial"))
    executed()
    assert cli.main([*COMMAND, "--out", str(out), "--resume"]) == 0
    assert executed() == {"the notebook": ["11_two"], "the report": [], "the claims": []}.get(when, ["11_two", "20_three"])
    assert {path.stem for path in (out / "state").glob("*.json")} == {"10_one", "11_two", "20_three"} and (out / "report.html").exists()


def test_half_a_file_is_taken_away_again(tmp_path, monkeypatch):
    replace(tmp_path / "file", "whole")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            replace(tmp_path / "file", "other")
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text(encoding="utf-8") == "whole"


# Locales and folders


@pytest.fixture(scope="module")
def locales(tmp_path_factory):
    """Where the C library finds the locales that this machine has not installed."""
    folder = tmp_path_factory.mktemp("locales")
    for name, charset in (("de_DE.ISO-8859-1", "ISO-8859-1"), ("ja_JP.EUC-JP", "EUC-JP")):
        if shutil.which("localedef"):
            subprocess.run(["localedef", "-i", name.split(".")[0], "-f", charset, str(folder / name)], capture_output=True)
    return folder


SAYS = "print('Δ ≥ 3 … ü'); raise ValueError('only 3 × Δ ≥ …')"


@pytest.mark.parametrize("locale", ["C", "de_DE.ISO-8859-1", "ja_JP.EUC-JP"])
def test_a_run_says_and_writes_the_same_in_every_locale_and_folder(locale, locales, notebooks, tmp_path):
    folder = notebooks(
        one10=GOOD + "; from lab.studies.study import Study; Study('10_one', None, out).not_run('E11', 'Δ ≥ 3 … ü')", two11=SAYS
    )
    out = tmp_path / "a b ü"
    environment = {**os.environ, "LC_ALL": locale, "LOCPATH": str(locales), "PYTHONPATH": str(ROOT)}
    for variable in ("PYTHONUTF8", "PYTHONIOENCODING", "LANG"):
        environment.pop(variable, None)
    arguments = [*COMMAND, "--out", "a b ü"]
    done = subprocess.run(command_line(folder, arguments), cwd=tmp_path, env=environment, capture_output=True, timeout=120)
    assert done.returncode == 1 and b"Traceback" not in done.stderr and b"ValueError: only 3" in done.stderr, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a b ü", "notebooks"]
    assert "Δ ≥ 3 … ü" in (out / "claims.csv").read_text(encoding="utf-8")
    assert "only 3 × Δ ≥ …" in (out / "report.html").read_text(encoding="utf-8")
    assert json.loads((out / "state" / "11_two.json").read_text(encoding="utf-8"))["error"] == "ValueError: only 3 × Δ ≥ …"


# Checkouts that cannot be written


SCRIPT = "set -euo pipefail; . requirements/environment.sh; make_environment auto; echo $PYTHON_VENV"


@pytest.fixture
def checkout(tmp_path):
    """A checkout in a folder with blanks and a foreign letter, whose environment is ready (a link to this one), and which is not writable
    for the script: whoever runs the tests may be root."""
    folder = tmp_path / "a b ü"
    shutil.copytree(ROOT / "requirements", folder / "requirements")
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "feather").mkdir()
    (folder / "feather" / "__init__.py").touch()
    return folder


def make_environment(folder, writable):
    say = (
        ""
        if writable
        else 'function [ { if test "$1" = -w; then return 1; elif test "$1$2" = "!-w"; then return 0; fi; builtin [ "$@"; }; '
    )
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(["bash", "-c", say + SCRIPT], cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=60)


def test_an_environment_leads_to_a_checkout_whose_name_the_locale_cannot_write(checkout):
    site = checkout / ".venv" / "lib" / "python3.11" / "site-packages"
    other = checkout / ".venv-other" / "lib" / "python3.11" / "site-packages"
    for folder in (site, other):
        folder.mkdir(parents=True)
    (site / "__editable__.feather_scheduler-0.pth").write_text(f"{checkout}\n", encoding="utf-8")
    script = f'. requirements/environment.sh; lead_to_checkout .venv; borrow_packages "$PWD/{other.relative_to(checkout)}"'
    subprocess.run(["bash", "-c", script], cwd=checkout, check=True, timeout=60)
    code = f"import site, sys; sys.prefix = {str(checkout / '.venv-other')!r}; site.addsitedir({str(other)!r}); print(ascii(sys.path))"
    done = subprocess.run(
        [sys.executable, "-S", "-X", "utf8", "-c", code],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "LC_ALL": "C"},
        check=True,
    )
    found = [Path(path).resolve() for path in ast.literal_eval(done.stdout)]
    assert site.resolve() in found and checkout.resolve() in found
    assert all(path.read_bytes().isascii() for folder in (site, other) for path in folder.glob("*.pth"))


def test_a_checkout_that_cannot_be_written_uses_its_environment_or_says_what_to_do(checkout):
    done = make_environment(checkout, writable=False)
    assert (
        done.returncode == 2
        and "cannot be written and has no environment in .venv" in done.stderr
        and not (checkout / ".venv.lock").exists()
    )
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "bin" / "python").symlink_to(sys.executable)
    (checkout / ".venv" / "bin" / "pip").write_text(f"#!{checkout}/.venv/bin/python\n", encoding="utf-8")
    stamp = "cat requirements/cpu-torch.txt requirements/cpu.txt requirements/peers.txt requirements/ray.txt pyproject.toml | sha256sum | cut -c1-16"
    want = subprocess.run(["bash", "-c", stamp], cwd=checkout, capture_output=True, encoding="utf-8", check=True).stdout.strip()
    (checkout / ".venv" / "complete").write_text(f"cpu-{want}\n", encoding="utf-8")
    done = make_environment(checkout, writable=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{checkout}/.venv/bin/python" and not (checkout / ".venv.lock").exists()
    assert make_environment(checkout, writable=True).returncode == 0


def test_an_out_that_cannot_be_written_is_refused(notebooks, tmp_path, capsys, monkeypatch):
    notebooks(one10=GOOD)
    monkeypatch.setattr(plan, "prepare_out", lambda out: (_ for _ in ()).throw(OSError(errno.EROFS, os.strerror(errno.EROFS))))
    assert cli.main([*COMMAND, "--out", str(tmp_path / "out")]) == 2
    assert "Read-only file system" in capsys.readouterr().err
    assert book.ROOT == ROOT


# A processor that is slow in bfloat16


@pytest.mark.parametrize("flags, dtype, gib", [("fpu avx2 fma", "float32", 8), ("fpu avx2 avx512f avx512bw", "bfloat16", 4)])
def test_models_compute_in_what_the_processor_is_fast_in_and_the_cache_holds_as_many_tokens(monkeypatch, flags, dtype, gib):
    monkeypatch.setattr(machine.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(machine, "_cpuinfo", lambda field: flags if field == "flags" else "")
    machine.lacks_avx512.cache_clear()
    try:
        assert (machine.cpu_dtype(), machine.gib(4)) == (dtype, gib)
        assert machine.engine_version(machine.cpu_dtype()).endswith(", float32") is (dtype == "float32"), "rows say which"
        monkeypatch.setattr(machine, "memory_gib", lambda: (16.0, 7.0))
        if dtype == "float32":
            with pytest.raises(MemoryError, match=r"a KV cache of 8 GiB \(float32\) needs about 10.0 GiB"):
                machine.check_memory(4)
        else:
            machine.check_memory(4)
    finally:
        machine.lacks_avx512.cache_clear()
