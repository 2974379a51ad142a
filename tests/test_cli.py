"""The two commands: what they refuse, and what they keep when something goes wrong."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab import book, machine
from lab.artifact import cli, plan, report

ROOT = Path(__file__).parents[1]

GOOD = "import pathlib; pathlib.Path(out, 'ran').open('a').write(name)"
BAD = "raise RuntimeError('no such luck')"
LONG = "import pathlib, time; pathlib.Path(out, 'began').touch(); time.sleep(120)"


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
        (["--backend", "sim", "--only", "14"], "14_finding_prefixes is not for backend 'sim': it runs on cpu, gpu"),
        (
            ["--backend", "cpu", "--only", "E12"],
            "no notebook tests E12 on backend 'cpu'; use ./run_all.sh --only E12 --backend sim --out out-sim",
        ),
        pytest.param(["--backend", "gpu"], "backend 'gpu': no CUDA GPU found", marks=pytest.mark.skipif(not NO_GPU, reason="has a GPU")),
        (["--backend", "cpu", "--rehearse"], "--rehearse is for --backend gpu, not cpu"),
        (["--only", "10,99"], "--only '99': no such notebook or claim; there are: 00_where_this_runs, 01_"),
        (["--only", "20_prefix_grups"], "no such notebook or claim; did you mean '20_prefix_groups'?"),
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
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.1" && exit\nexit 1\n', encoding="utf-8")
    old.chmod(0o755)
    done = run_all("--list", PYTHON=str(old))
    assert done.returncode == 2
    assert done.stderr.strip() == f"run_all.sh: PYTHON={old} is Python 3.9.1; Feather needs Python 3.11, 3.12 or 3.13 with venv"


def test_the_list_says_how_long_each_takes():
    done = run_all("--list", "--profile", "smoke")
    assert done.returncode == 0
    listed = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")]
    assert listed == [job.name for job in plan.make_jobs(None, "smoke", machine.choose_backend()[0])]
    assert "2x what scheduling by it gains\n  20_prefix_groups" in done.stdout and "on other backends only (--backend sim): " in done.stdout
    minutes, seconds = divmod(round(book.ENTRIES["20_prefix_groups"].seconds("smoke", "cpu")), 60)
    assert re.search(rf"20_prefix_groups +E3 E7 E10 +{minutes}:{seconds:02} min", done.stdout)


def test_too_little_memory_is_refused_with_the_numbers(tmp_path, monkeypatch, capsys, notebooks):
    folder = notebooks(one10=GOOD, two11=GOOD, three20=GOOD)
    path = folder / "11_two.ipynb"
    path.write_text(path.read_text(encoding="utf-8").replace("backend = out", "kv_gib = 4\\nbackend = out"), encoding="utf-8")
    monkeypatch.setattr(machine, "memory_gib", lambda: (8.0, 3.0))
    monkeypatch.setattr(machine, "lacks_avx512", lambda: False)
    assert cli.main(["--backend", "cpu", "--out", str(tmp_path / "out")]) == 2
    assert "a KV cache of 4 GiB (bfloat16) needs about 6.0 GiB in all and 3.0 GiB are free: lower kv_gib" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_one_failing_notebook_does_not_stop_the_others_and_resume_repeats_only_it(notebooks, tmp_path, capfd):
    out = tmp_path / "out"
    folder = notebooks(one10=GOOD, two11=BAD, three20=GOOD)
    command = ["--backend", "cpu", "--profile", "smoke", "--out", str(out)]
    assert cli.main(command) == 1
    said = capfd.readouterr()
    assert "11_two failed: RuntimeError: no such luck (see " in said.err
    assert (out / "notebooks" / "11_two.ipynb").exists() and (out / "ran").read_text(encoding="utf-8") == "1020"
    assert "Failed: RuntimeError: no such luck" in (out / "report.html").read_text(encoding="utf-8")
    with (out / "claims.csv").open(encoding="utf-8") as file:
        claims = list(csv.DictReader(file))
    assert [claim["claim"] for claim in claims][:3] == ["M1", "M2", "M3"]
    assert {claim["verdict"] for claim in claims} == {"not run here"}

    notebooks(two11=GOOD)
    assert cli.main([*command, "--resume"]) == 0
    assert "10_one: already ran with these parameters and this code" in capfd.readouterr().out
    assert (out / "ran").read_text(encoding="utf-8") == "102011"

    path = folder / "10_one.ipynb"
    path.write_text(path.read_text(encoding="utf-8").replace("open('a')", "open('a+')"), encoding="utf-8")
    assert cli.main([*command, "--resume"]) == 0
    assert (out / "ran").read_text(encoding="utf-8") == "10201110", "a changed notebook runs again"


def test_a_resumed_run_that_is_interrupted_keeps_what_it_had_not_begun_to_replace(notebooks, tmp_path, monkeypatch):
    out = tmp_path / "out"
    folder = notebooks(one10=GOOD, two11=GOOD)
    command = ["--backend", "cpu", "--profile", "smoke", "--out", str(out)]
    assert cli.main(command) == 0
    for name in ("10_one", "11_two"):
        path = folder / f"{name}.ipynb"
        path.write_text(path.read_text(encoding="utf-8").replace("open('a')", "open('a+')"), encoding="utf-8")

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("papermill.execute_notebook", interrupted)
    assert cli.main([*command, "--resume"]) == 130
    assert not (out / "state" / "10_one.json").exists() and (out / "state" / "11_two.json").exists()


def test_a_record_that_was_cut_short_is_run_again(notebooks, tmp_path):
    out = tmp_path / "out"
    notebooks(one10=GOOD)
    command = ["--backend", "cpu", "--profile", "smoke", "--out", str(out)]
    assert cli.main(command) == 0
    (out / "state" / "10_one.json").write_text('{"name": "10', encoding="utf-8")
    assert cli.main([*command, "--resume"]) == 0 and (out / "ran").read_text(encoding="utf-8") == "1010"


def test_a_notebook_that_lacked_a_data_set_is_run_again_and_the_claims_table_says_what_it_lacked(notebooks, tmp_path):
    out = tmp_path / "out"
    notebooks(one10=GOOD + "; from lab.studies.study import Study; Study('10_one', None, out).not_run('E11', 'fetch it')", two11=GOOD)
    command = ["--backend", "cpu", "--profile", "smoke", "--out", str(out)]
    assert cli.main(command) == 0
    with (out / "claims.csv").open(encoding="utf-8") as file:
        (claim,) = [row for row in csv.DictReader(file) if row["claim"] == "E11"]
    assert (claim["verdict"], claim["reason"]) == ("not run here", "fetch it")
    assert cli.main([*command, "--resume"]) == 0 and (out / "ran").read_text(encoding="utf-8") == "101110"


def test_a_claim_says_over_how_many_repeats_or_that_there_was_one_run(notebooks, tmp_path):
    out = tmp_path / "out"
    code = "from lab.studies.study import Study; from lab.stats import Ratio; study = Study('10_one', None, out); "
    code += "study.claim('E3', Ratio(150.4, 100.2, 200.6, 5), 'why'); study.claim('E4', Ratio(2.0, 2.0, 2.0, 1), 'why')"
    notebooks(one10=code)
    assert cli.main(["--backend", "cpu", "--profile", "smoke", "--only", "10", "--out", str(out)]) == 0
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "150 × <br>[100, 201] <br>n = 5, cpu" in page and "2.00 × <br>one run, cpu" in page
    with (out / "claims.csv").open(newline="", encoding="utf-8") as file:
        repeats = {row["claim"]: row["repeats"] for row in csv.DictReader(file)}
    assert (repeats["E3"], repeats["E4"], repeats["M1"]) == ("5", "1", "")


def test_every_claim_is_in_the_table_and_one_that_was_not_run_names_the_command_that_tests_it(tmp_path):
    for folder in ("state", "results"):
        (tmp_path / folder).mkdir()
    report.write_report(tmp_path, "cpu")
    with (tmp_path / "claims.csv").open(newline="", encoding="utf-8") as file:
        mends = {row["claim"]: row["reason"] for row in csv.DictReader(file)}
    assert list(mends) == list(book.CLAIMS)
    assert {*(f"M{number}" for number in range(1, 8)), *(f"E{number}" for number in range(1, 13))} <= mends.keys(), "the paper's"
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for claim, mend in mends.items():
        assert mend.startswith(f"./run_all.sh --only {claim}") and f"<td>{claim}</td>" in page and f"<code>{mend}</code>" in page
        options = cli.parse([*mend.split()[1:], "--profile", "smoke"])
        backend = options.backend if options.backend != "auto" else "cpu"
        assert all(claim in job.entry.claims for job in plan.make_jobs(options.only, options.profile, backend))


def test_a_relative_folder_is_meant_from_where_the_command_was_typed(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").touch()
    command = [str(ROOT / "run_all.sh"), "--profile", "smoke", "--out", "mine"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 2 and f"--out {tmp_path}/mine: the folder is not empty and was not made" in done.stderr


def test_a_folder_of_results_is_written_again_and_other_files_in_it_are_kept(notebooks, tmp_path):
    out = tmp_path / "out"
    notebooks(one10=GOOD)
    command = ["--backend", "cpu", "--profile", "smoke", "--out", str(out)]
    assert cli.main(command) == 0
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    assert cli.main(command) == 0
    assert (out / "notes.txt").read_text(encoding="utf-8") == "mine" and (out / "ran").read_text(encoding="utf-8") == "1010"


def test_ctrl_c_keeps_what_finished_and_resume_goes_on(notebooks, tmp_path):
    out = tmp_path / "out"
    folder = notebooks(one10=GOOD, two11=LONG)
    arguments = ["--backend", "cpu", "--profile", "smoke", "--out", str(out)]
    code = (  # a shell that runs the tests in the background has them ignore Ctrl-C, and all their children
        "import pathlib, signal, sys; from lab import book; from lab.artifact import cli; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "
        f"book.NOTEBOOKS = pathlib.Path({str(folder)!r}); "
        "book.ENTRIES = {name: book.Entry(name, {'cpu': [2 / 60] * 3}) for name in ('10_one', '11_two')}; "
        f"sys.exit(cli.main({arguments!r}))"
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
    assert (
        (out / "ran").read_text(encoding="utf-8") == "10"
        and (out / "report.html").exists()
        and not (out / "state" / "11_two.json").exists()
    )

    (out / "began").unlink()
    notebooks(two11=GOOD)
    again = subprocess.run(
        [sys.executable, "-c", code.replace("'--out'", "'--resume', '--out'")], capture_output=True, text=True, timeout=120
    )
    assert again.returncode == 0 and (out / "ran").read_text(encoding="utf-8") == "1011"


def test_modelled_notebooks_run_side_by_side_but_for_one_that_times_what_it_runs(notebooks, tmp_path, monkeypatch, capfd):
    out = tmp_path / "out"
    meet = "import pathlib, time; pathlib.Path(out, name).touch(); began = time.monotonic()\n"
    meet += (
        "while not all(pathlib.Path(out, other).exists() for other in ('10', '11')): assert time.monotonic() < began + 60; time.sleep(0.1)"
    )
    lonely = (
        "import pathlib; assert all(pathlib.Path(out, 'state', other + '.json').exists() for other in ('10_one', '11_two', '20_three'))"
    )
    notebooks(alone09=lonely, one10=meet, two11=meet, three20=BAD)
    for name in book.ENTRIES:
        book.ENTRIES[name] = book.Entry(name, {"sim": [0.1] * 3}, alone=name == "09_alone")
    monkeypatch.setattr(plan, "lanes", lambda backend, profile: 2)
    assert cli.main(["--backend", "sim", "--out", str(out)]) == 1, "20 fails, and it alone"
    said = capfd.readouterr()
    assert "20_three failed: RuntimeError: no such luck" in said.err and said.err.count("failed") == 1
    assert "[2/4] 10_one + 11_two  0:0" in said.out and "[4/4] 09_alone  " in said.out


@pytest.mark.parametrize(
    "backend, profile, cores, free, lanes",
    [
        ("cpu", "default", 8, 64.0, 1),
        ("gpu", "smoke", 8, 64.0, 1),
        ("cpu", "smoke", 8, 64.0, 8),
        ("cpu", "smoke", 8, 11.0, 1),
        ("sim", "default", 8, 64.0, 8),
        ("sim", "default", 8, 10.0, 3),
        ("sim", "default", 8, 1.0, 1),
        ("sim", "smoke", 1, 64.0, 1),
    ],
)
def test_as_many_run_side_by_side_as_cores_and_memory_allow(backend, profile, cores, free, lanes, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    monkeypatch.setattr(machine, "memory_gib", lambda: (64.0, free))
    assert plan.lanes(backend, profile) == lanes


def test_a_notebook_takes_its_sizes_from_the_environment_where_nobody_passes_any(tmp_path, monkeypatch):
    for variable in ("FEATHER_PROFILE", "FEATHER_OUT"):
        monkeypatch.delenv(variable, raising=False)
    assert book.from_environment("10_one_stranger") == {}
    monkeypatch.setattr(machine, "cuda_gpu", lambda: None)
    monkeypatch.setenv("FEATHER_PROFILE", "smoke")
    monkeypatch.setenv("FEATHER_OUT", str(tmp_path))
    (job,) = plan.make_jobs("10", "smoke", "cpu")
    assert book.from_environment("10_one_stranger") == {**job.parameters, "out": str(tmp_path)}
    monkeypatch.setenv("FEATHER_PROFILE", "smok")
    with pytest.raises(ValueError, match="FEATHER_PROFILE='smok' is not one of: smoke, default, full"):
        book.from_environment("10_one_stranger")


def test_the_command_line_alone_decides_the_sizes_of_a_run(notebooks, tmp_path, monkeypatch):
    monkeypatch.setenv("FEATHER_PROFILE", "full")
    monkeypatch.setenv("FEATHER_OUT", str(tmp_path / "elsewhere"))
    notebooks(one10="import os; assert not {'FEATHER_PROFILE', 'FEATHER_OUT'} & set(os.environ)")
    assert cli.main(["--backend", "cpu", "--profile", "smoke", "--out", str(tmp_path / "out")]) == 0


def test_only_takes_numbers_names_and_claims_in_any_order():
    def names(only, backend="cpu"):
        return [job.name for job in plan.make_jobs(only, "smoke", backend)]

    assert names("20,10_one_stranger") == ["10_one_stranger", "20_prefix_groups"]
    assert names("E3") == names("e3, 20") == ["20_prefix_groups"]
    assert names("E1") == ["21_request_rate"] and names("E1", "sim") == ["21_request_rate", "25_inside_sglang"]
    assert names("M1,E1", "sim") == ["10_one_stranger", "21_request_rate", "25_inside_sglang"]


def test_the_largest_cache_that_a_job_asks_for_is_the_books_or_else_the_notebooks_own(notebooks, monkeypatch):
    monkeypatch.setattr(machine, "lacks_avx512", lambda: False)
    folder = notebooks(one10=GOOD)
    path = folder / "10_one.ipynb"
    path.write_text(path.read_text(encoding="utf-8").replace("backend = out", "kv_gib = 4\\nbackend = out"), encoding="utf-8")
    assert [job.kv_gib for job in plan.make_jobs("10", "default", "cpu")] == [4]
    monkeypatch.setitem(book.ENTRIES, "10_one", book.Entry("10_one", {"cpu": []}, changes={"cpu": {"kv_gib": 9}}))
    assert [job.kv_gib for job in plan.make_jobs("10", "default", "cpu")] == [9]


def test_a_job_is_another_one_where_the_book_gives_other_parameters(notebooks, monkeypatch):
    notebooks(one10=GOOD)
    (job,) = plan.make_jobs("10", "default", "cpu")
    before = job.fingerprint("here")
    assert before == job.fingerprint("here") != job.fingerprint("there")
    monkeypatch.setitem(book.ENTRIES, "10_one", book.Entry("10_one", {"cpu": []}, changes={"cpu": {"name": "12"}}))
    (job,) = plan.make_jobs("10", "default", "cpu")
    assert job.fingerprint("here") != before


def test_a_claim_that_was_not_run_names_the_notebook_that_measures_it_before_one_that_models_it():
    assert report._why_not_run("M3", {}) == "./run_all.sh --only M3"
    assert report._why_not_run("E12", {}) == "./run_all.sh --only E12 --backend sim --out out-sim"
    assert report._why_not_run("M3", {"12_what_is_shared": {"not run": {"M3": "a reason"}}}) == "a reason"


def test_the_list_tells_claims_minutes_and_questions_by_decade(notebooks, monkeypatch, capsys):
    folder = notebooks(one10=GOOD)
    path = folder / "10_one.ipynb"
    told = json.loads(path.read_text(encoding="utf-8"))
    heading = {"cell_type": "markdown", "id": "x", "metadata": {}, "source": ["# 10 · Does one matter? (M1)\n", "More."]}
    path.write_text(json.dumps({**told, "cells": [heading, *told["cells"]]}), encoding="utf-8")
    monkeypatch.setattr(
        book, "ENTRIES", {"10_one": book.Entry("10_one", {"cpu": [1, 2, 3]}, ("M1",)), "20_two": book.Entry("20_two", {"cpu": []})}
    )
    cli.list_jobs(plan.make_jobs(None, "default", "cpu"))
    assert capsys.readouterr().out.splitlines() == [
        "1x why homogeneity matters",
        "  10_one  M1   2:00 min  Does one matter?",
        "2x what scheduling by it gains",
        "  20_two      not timed",
    ]
