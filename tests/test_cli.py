"""The two commands: what they refuse, and what they keep when something goes wrong."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from lab import machine
from lab.artifact import cli, plan, report

ROOT = Path(__file__).parents[1]

GOOD = "import pathlib; pathlib.Path(out, 'ran').open('a').write(name)"
BAD = "raise RuntimeError('no such luck')"
LONG = "import pathlib, time; pathlib.Path(out, 'began').touch(); time.sleep(120)"


@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    """Notebooks of one cell each in place of the real ones: returns a function name → cell that makes them."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    names = ("01_one", "02_two", "03_three")
    (folder / "profiles.toml").write_text("".join(f"[{name}.cpu.smoke]\nexpected_seconds = 2\n" for name in names))
    monkeypatch.setattr(plan, "NOTEBOOKS", folder)

    def make(**cells):
        for name, source in cells.items():
            name = f"{name[-2:]}_{name[:-2]}"
            parameters = nbformat.v4.new_code_cell(f"backend = out = None\nname = '{name[:2]}'", metadata={"tags": ["parameters"]})
            book = nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell(source)])
            book.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
            nbformat.write(book, folder / f"{name}.ipynb")
        return folder

    return make


def run_all(*arguments, **environment):
    return subprocess.run(
        [str(ROOT / "run_all.sh"), *arguments], capture_output=True, text=True, env={**os.environ, **environment}, timeout=120
    )


NO_GPU = machine.cuda_gpu() is None


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--profile", "huge"], "--profile 'huge' is not one of: smoke, default, full"),
        (["--backend", "tpu"], "backend 'tpu' is not one of: auto, gpu, cpu, sim"),
        (["--backend", "sim", "--only", "05"], "05_detection_overhead is not for backend 'sim': it runs on cpu, gpu"),
        pytest.param(["--backend", "gpu"], "backend 'gpu': no CUDA GPU found", marks=pytest.mark.skipif(not NO_GPU, reason="has a GPU")),
        (["--only", "01,99"], "--only '99': no such notebook; there are: 00_environment, 01_"),
        (["--only", "03_end_to_edn"], "no such notebook; did you mean '03_end_to_end'?"),
        (["--only", ","], "--only names no notebook"),
        (["--out", "/proc/nothing"], "--out /proc/nothing: /proc cannot be written"),
        (["--out", str(ROOT / "README.md")], "README.md is not a folder; choose another"),
        (["--out", str(ROOT / "feather")], "feather: the folder is not empty and was not made by run_all.sh"),
        (["--profil", "smoke"], "unrecognized arguments: --profil smoke"),
    ],
)
def test_a_wrong_command_line_gets_one_line_and_leaves_nothing(arguments, message, tmp_path):
    out = [] if "--out" in arguments else ["--out", str(tmp_path / "out")]
    done = run_all(*arguments, *out)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if not line.startswith(("usage", " "))]) == 1
    assert not (tmp_path / "out").exists()


def test_an_unsupported_python_is_named(tmp_path):
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.1" && exit\nexit 1\n')
    old.chmod(0o755)
    done = run_all("--list", PYTHON=str(old))
    assert done.returncode == 2
    assert done.stderr.strip() == f"run_all.sh: PYTHON={old} is Python 3.9.1; Feather needs Python 3.11, 3.12 or 3.13 with venv"


def test_the_list_says_how_long_each_takes():
    done = run_all("--list", "--profile", "smoke")
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == plan.choose_for_backend(None, "cpu")


def test_too_little_memory_is_refused_with_the_numbers(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(machine, "memory_gib", lambda: (8.0, 3.0))
    assert cli.main(["--backend", "cpu", "--out", str(tmp_path / "out")]) == 2
    assert "a KV cache of 4 GiB needs about 6.0 GiB in all and 3.0 GiB are free: lower kv_gib" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_one_failing_notebook_does_not_stop_the_others_and_resume_repeats_only_it(notebooks, tmp_path, capfd):
    out = tmp_path / "out"
    folder = notebooks(one01=GOOD, two02=BAD, three03=GOOD)
    command = ["--backend", "cpu", "--profile", "smoke", "--out", str(out)]
    assert cli.main(command) == 1
    said = capfd.readouterr()
    assert "02_two failed: RuntimeError: no such luck (see " in said.err
    assert (out / "notebooks" / "02_two.ipynb").exists() and (out / "ran").read_text() == "0103"
    assert "Failed: RuntimeError: no such luck" in (out / "report.html").read_text()
    with (out / "claims.csv").open() as file:
        claims = list(csv.DictReader(file))
    assert [claim["claim"] for claim in claims][:3] == ["M1", "M2", "M3"]
    assert {claim["verdict"] for claim in claims} == {"not run here"}

    notebooks(two02=GOOD)
    assert cli.main([*command, "--resume"]) == 0
    assert "01_one: already ran with these parameters and this code" in capfd.readouterr().out
    assert (out / "ran").read_text() == "010302"

    book = folder / "01_one.ipynb"
    book.write_text(book.read_text().replace("open('a')", "open('a+')"))
    assert cli.main([*command, "--resume"]) == 0
    assert (out / "ran").read_text() == "01030201", "a changed notebook runs again"


def test_a_resumed_run_that_is_interrupted_keeps_what_it_had_not_begun_to_replace(notebooks, tmp_path, monkeypatch):
    out = tmp_path / "out"
    folder = notebooks(one01=GOOD, two02=GOOD)
    command = ["--backend", "cpu", "--profile", "smoke", "--out", str(out)]
    assert cli.main(command) == 0
    for name in ("01_one", "02_two"):
        book = folder / f"{name}.ipynb"
        book.write_text(book.read_text().replace("open('a')", "open('a+')"))

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("papermill.execute_notebook", interrupted)
    assert cli.main([*command, "--resume"]) == 130
    assert not (out / "state" / "01_one.json").exists() and (out / "state" / "02_two.json").exists()


def test_a_record_that_was_cut_short_is_run_again(notebooks, tmp_path):
    out = tmp_path / "out"
    notebooks(one01=GOOD)
    command = ["--backend", "cpu", "--profile", "smoke", "--out", str(out)]
    assert cli.main(command) == 0
    (out / "state" / "01_one.json").write_text('{"name": "01')
    assert cli.main([*command, "--resume"]) == 0 and (out / "ran").read_text() == "0101"


def test_a_notebook_that_lacked_a_data_set_is_run_again_and_the_claims_table_says_what_it_lacked(notebooks, tmp_path):
    out = tmp_path / "out"
    notebooks(one01=GOOD + "; from lab.studies.study import Study; Study('01_one', None, out).not_run('E11', 'fetch it')", two02=GOOD)
    command = ["--backend", "cpu", "--profile", "smoke", "--out", str(out)]
    assert cli.main(command) == 0
    with (out / "claims.csv").open() as file:
        (claim,) = [row for row in csv.DictReader(file) if row["claim"] == "E11"]
    assert (claim["verdict"], claim["reason"]) == ("not run here", "fetch it")
    assert cli.main([*command, "--resume"]) == 0 and (out / "ran").read_text() == "010201"


def test_a_claim_says_over_how_many_repeats_or_that_there_was_one_run(notebooks, tmp_path):
    out = tmp_path / "out"
    code = "from lab.studies.study import Study; from lab.stats import Ratio; study = Study('01_one', None, out); "
    code += "study.claim('E3', Ratio(150.4, 100.2, 200.6, 5), 'why'); study.claim('E4', Ratio(2.0, 2.0, 2.0, 1), 'why')"
    notebooks(one01=code)
    assert cli.main(["--backend", "cpu", "--profile", "smoke", "--only", "01", "--out", str(out)]) == 0
    page = (out / "report.html").read_text()
    assert "150 × <br>[100, 201] <br>n = 5, cpu" in page and "2.00 × <br>one run, cpu" in page
    with (out / "claims.csv").open(newline="") as file:
        repeats = {row["claim"]: row["repeats"] for row in csv.DictReader(file)}
    assert (repeats["E3"], repeats["E4"], repeats["M1"]) == ("5", "1", "")


def test_every_claim_is_in_the_table_and_one_that_was_not_run_names_the_notebook_that_tests_it(tmp_path):
    for folder in ("state", "results"):
        (tmp_path / folder).mkdir()
    report.write_report(tmp_path, "cpu")
    with (tmp_path / "claims.csv").open(newline="") as file:
        mends = {row["claim"]: row["reason"] for row in csv.DictReader(file)}
    assert list(mends) == [f"M{number}" for number in range(1, 8)] + [f"E{number}" for number in range(1, 13)]
    page = (tmp_path / "report.html").read_text()
    for claim, mend in mends.items():
        number = mend.removeprefix("./run_all.sh --only ")[:2]
        (book,) = plan.NOTEBOOKS.glob(f"{number}_*.ipynb")
        cells = json.loads(book.read_text())["cells"]
        told = "".join("".join(cell["source"]) for cell in cells).replace("\n", "").replace(" ", "")
        assert f'claim("{claim}"' in told, f"{book.stem} says nothing of {claim}"
        assert f"<td>{claim}</td>" in page and f"<code>{mend}</code>" in page


def test_a_relative_folder_is_meant_from_where_the_command_was_typed(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").touch()
    command = [str(ROOT / "run_all.sh"), "--profile", "smoke", "--out", "mine"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 2 and f"--out {tmp_path}/mine: the folder is not empty and was not made" in done.stderr


def test_a_folder_of_results_is_written_again_and_other_files_in_it_are_kept(notebooks, tmp_path):
    out = tmp_path / "out"
    notebooks(one01=GOOD)
    command = ["--backend", "cpu", "--profile", "smoke", "--out", str(out)]
    assert cli.main(command) == 0
    (out / "notes.txt").write_text("mine")
    assert cli.main(command) == 0
    assert (out / "notes.txt").read_text() == "mine" and (out / "ran").read_text() == "0101"


def test_ctrl_c_keeps_what_finished_and_resume_goes_on(notebooks, tmp_path):
    out = tmp_path / "out"
    folder = notebooks(one01=GOOD, two02=LONG)
    arguments = ["--backend", "cpu", "--profile", "smoke", "--out", str(out)]
    code = (  # a shell that runs the tests in the background has them ignore Ctrl-C, and all their children
        "import pathlib, signal, sys; from lab.artifact import cli, plan; signal.signal(signal.SIGINT, signal.default_int_handler); "
        f"plan.NOTEBOOKS = pathlib.Path({str(folder)!r}); sys.exit(cli.main({arguments!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        if (out / "began").exists():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "interrupted; what had finished is kept: the same command with --resume goes on" in stderr
    assert (out / "ran").read_text() == "01" and (out / "report.html").exists() and not (out / "state" / "02_two.json").exists()

    (out / "began").unlink()
    notebooks(two02=GOOD)
    again = subprocess.run(
        [sys.executable, "-c", code.replace("'--out'", "'--resume', '--out'")], capture_output=True, text=True, timeout=120
    )
    assert again.returncode == 0 and (out / "ran").read_text() == "0102"


def test_a_notebook_takes_its_sizes_from_the_environment_where_nobody_passes_any(tmp_path, monkeypatch):
    for variable in ("FEATHER_PROFILE", "FEATHER_OUT"):
        monkeypatch.delenv(variable, raising=False)
    assert plan.from_environment("01_prefix_homogeneity") == {}
    monkeypatch.setattr(machine, "cuda_gpu", lambda: None)
    monkeypatch.setenv("FEATHER_PROFILE", "smoke")
    monkeypatch.setenv("FEATHER_OUT", str(tmp_path))
    (job,) = plan.make_jobs(["01_prefix_homogeneity"], "smoke", "cpu")
    assert plan.from_environment("01_prefix_homogeneity") == {**job.parameters, "out": str(tmp_path)}
    monkeypatch.setenv("FEATHER_PROFILE", "smok")
    with pytest.raises(ValueError, match="no profile 'smok' for backend 'cpu'"):
        plan.from_environment("01_prefix_homogeneity")


def test_the_command_line_alone_decides_the_sizes_of_a_run(notebooks, tmp_path, monkeypatch):
    monkeypatch.setenv("FEATHER_PROFILE", "full")
    monkeypatch.setenv("FEATHER_OUT", str(tmp_path / "elsewhere"))
    notebooks(one01="import os; assert not {'FEATHER_PROFILE', 'FEATHER_OUT'} & set(os.environ)")
    assert cli.main(["--backend", "cpu", "--profile", "smoke", "--out", str(tmp_path / "out")]) == 0


def test_every_parameter_of_a_profile_is_one_of_the_notebooks(monkeypatch):
    import tomllib

    monkeypatch.delenv("FEATHER_PROFILE", raising=False)
    profiles = tomllib.loads((ROOT / "notebooks" / "profiles.toml").read_text())
    for name in plan.notebook_names():
        book = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())
        cell = next(cell for cell in book["cells"] if "parameters" in cell["metadata"].get("tags", []))
        namespace = {}
        exec("".join(cell["source"]), namespace)
        assert {"backend", "out"} <= namespace.keys()
        assert f'plan.from_environment("{name}")' in "".join(cell["source"]), f"{name} cannot be run small by a test"
        for backend, by_profile in profiles[name].items():
            assert backend in machine.BACKENDS
            for profile, parameters in by_profile.items():
                assert profile in plan.PROFILES
                unknown = parameters.keys() - {"expected_seconds"} - namespace.keys()
                assert not unknown, f"{name}.{backend}.{profile} sets {unknown}"
        assert profiles[name], name
        for backend, by_profile in profiles[name].items():
            assert set(by_profile) == set(plan.PROFILES), f"{name}.{backend}"
        assert not plan.runs_here(name) or {"cpu", "gpu"} <= profiles[name].keys(), name
        for cell in book["cells"]:
            compared = "nbval-check-output" in cell["metadata"].get("tags", [])
            assert bool(cell.get("outputs")) == compared, (
                f"{name}, {cell['id']}: outputs are committed where a test compares them, and only there"
            )


def test_a_claim_that_was_not_run_names_the_notebook_that_measures_it_before_one_that_models_it():
    assert report._why_not_run("M3", {}) == "./run_all.sh --only 18"
    assert report._why_not_run("E6", {}) == "./run_all.sh --only 09 --backend sim --out out-sim"
    assert report._why_not_run("M3", {"18_sweeps": {"not run": {"M3": "a reason"}}}) == "a reason"


def test_a_notebook_that_nobody_has_timed_is_listed_as_such(monkeypatch, capsys):
    cli.list_jobs([plan.Job("01_one", "smoke", {}, None), plan.Job("02_two", "smoke", {}, 60)])
    assert capsys.readouterr().out.splitlines() == [f"{'01_one':<32} not timed yet", f"{'02_two':<32} about 1:00 min"]
