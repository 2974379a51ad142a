"""Outputs of a run in the notebooks: whose they are, what is left out of them, and when they are older than the code."""

import base64
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lab import book, machine
from lab.artifact import cli, outputs
from lab.artifact.publish import publish_outputs
from lab.studies.study import Study, read

ROOT = Path(__file__).parents[1]

DRAWS = """
import os, sys, warnings
import matplotlib.pyplot as plt
from IPython.display import display
print(f"rows are in {os.path.abspath(out)}/results.csv")
print("chatter", file=sys.stderr)
print("\\x1b[33m(another process)\\x1b[0m chatter")
display({"application/vnd.jupyter.widget-view+json": {"model_id": "x"}, "text/plain": "a widget"}, raw=True)
display({"image/png": open(os.path.join(out, "figure.png"), "rb").read(), "text/plain": "a figure"}, raw=True)
name
"""


def png(side, noise):
    values = np.random.default_rng(0).integers(0, 256, (side, side, 4), dtype=np.uint8) if noise else np.zeros((side, side, 4), np.uint8)
    written = io.BytesIO()
    Image.fromarray(values, "RGBA").save(written, format="PNG")
    return written.getvalue()


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


def finish(out, backend, *names, **run):
    """Leave in ``out`` what a run of these notebooks of one line each leaves, without running them: each has printed the backend."""
    for folder in ("notebooks", "state"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        notebook = load(book.ENTRIES[name].source())
        given = {"backend": backend, "out": str(out)}
        notebook["metadata"]["papermill"] = {"end_time": "2026-11-26T04:05:06.7+00:00", "parameters": given}
        notebook["cells"][1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": [f"{backend}\n"]}]
        (out / "notebooks" / f"{name}.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
        (out / "state" / f"{name}.json").write_text(json.dumps({"profile": "default", "revision": "abc"}), encoding="utf-8")
    about = {"profiles": ["default"], "failed": [], "revisions": ["abc"], "device": "d", "backend": backend, "machine": {}}
    (out / "run.json").write_text(json.dumps({**about, "seconds": dict.fromkeys(names, 1), **run}), encoding="utf-8")
    return out


@pytest.fixture
def ran(notebooks, tmp_path):
    """A notebook and a run of it: the notebook's path and the run's folder."""
    folder = notebooks(one10="print(backend)")
    return folder / "10_one.ipynb", finish(tmp_path / "out", "cpu", "10_one")


def test_a_notebook_shows_the_outputs_of_a_run_and_says_which(notebooks, tmp_path):
    path, out = notebooks(one10=DRAWS) / "10_one.ipynb", tmp_path / "out"
    out.mkdir()
    (out / "figure.png").write_bytes(png(300, noise=False))
    (out / ".made-by-feather").touch()
    assert cli.main(["--backend", "cpu", "--out", str(out)]) == 0
    before = load(path)
    assert publish_outputs(out) == ["10_one"]
    after = load(path)
    (first, second) = after["cells"]
    assert [cell["source"] for cell in after["cells"]] == [cell["source"] for cell in before["cells"]]
    assert [cell["id"] for cell in after["cells"]] == [cell["id"] for cell in before["cells"]]
    assert [cell["execution_count"] for cell in after["cells"]] == [1, 2]

    about = after["metadata"]["feather"]["run"]
    assert (about["profile"], about["backend"], about["device"]) == ("default", "cpu", machine.device("cpu"))
    assert about["revision"] == machine.revision() and about["time"].endswith(" UTC")
    told = "".join(first["outputs"][0]["text"])
    assert told.startswith("The outputs below are of a run with profile default on backend cpu (") and about["revision"] in told

    stream, figure, result = second["outputs"]
    assert stream["text"] == ["rows are in out/results.csv\n"], "no chatter, nor where this machine has the file"
    assert figure["data"].keys() == {"image/png", "text/plain"}, "the widget is gone"
    assert Image.open(io.BytesIO(base64.b64decode(figure["data"]["image/png"]))).size == (300, 300)
    assert result["execution_count"] == 2 and result["data"]["text/plain"] == ["'10'"]

    text = path.read_text(encoding="utf-8")
    publish_outputs(out)
    assert path.read_text(encoding="utf-8") == text, "the same bytes for the same run"
    assert not [place for place in (str(ROOT), str(out)) if place in text]


def test_parameters_that_are_not_the_notebooks_own_are_told(notebooks, tmp_path, monkeypatch):
    notebooks(one10="print(name)")
    monkeypatch.setitem(book.ENTRIES, "10_one", book.Entry("10_one", {"cpu": []}, changes={"cpu": {"name": "77"}}))
    out = tmp_path / "out"
    assert cli.main(["--backend", "cpu", "--out", str(out)]) == 0  # the runner's own cell is between the two
    publish_outputs(out)
    cells = load(book.NOTEBOOKS / "10_one.ipynb")["cells"]
    assert cells[0]["outputs"][0]["text"].endswith("It was given: name = '77'.\n") and cells[1]["outputs"][0]["text"] == ["77\n"]


def test_outputs_older_than_the_code_they_show_are_named_with_the_mend(ran):
    path, out = ran
    assert outputs.complaint("10_one") == "", "it has none"
    publish_outputs(out)
    assert outputs.complaint("10_one") == ""
    shown = load(path)
    shown["cells"].append({"cell_type": "markdown", "id": "words", "metadata": {}, "source": "other words"})
    path.write_text(json.dumps(shown), encoding="utf-8")
    assert outputs.complaint("10_one") == "", "words are no code"
    shown["cells"][1]["source"] = "print('other')"
    path.write_text(json.dumps(shown), encoding="utf-8")
    found = outputs.complaint("10_one")
    assert found.startswith("notebooks/10_one.ipynb: its outputs are older than the code they show; run it (./run_all.sh --only 10)")
    del shown["metadata"]["feather"]
    path.write_text(json.dumps(shown), encoding="utf-8")
    assert "nothing says which run its outputs are of" in outputs.complaint("10_one")
    with pytest.raises(ValueError, match="notebooks/10_one.ipynb has other code than was run"):
        publish_outputs(out)


def test_what_a_test_compares_stays(ran):
    path, out = ran
    notebook = load(path)
    kept = [{"output_type": "stream", "name": "stdout", "text": "compared"}]
    notebook["cells"][1]["metadata"]["tags"], notebook["cells"][1]["outputs"] = ["nbval-check-output"], kept
    path.write_text(json.dumps(notebook), encoding="utf-8")
    assert outputs.complaint("10_one") == ""
    publish_outputs(out)
    assert load(path)["cells"][1]["outputs"] == kept and outputs.complaint("10_one") == ""


def test_what_measures_shows_a_measured_run_and_what_only_models_a_modelled_one(notebooks, tmp_path, monkeypatch):
    notebooks(one10="print(backend)", two11="print(backend)")
    monkeypatch.setitem(book.ENTRIES, "10_one", book.Entry("10_one", {"cpu": [], "sim": []}))
    monkeypatch.setitem(book.ENTRIES, "11_two", book.Entry("11_two", {"sim": []}))
    assert publish_outputs(finish(tmp_path / "cpu", "cpu", "10_one")) == ["10_one"]
    assert publish_outputs(finish(tmp_path / "sim", "sim", "10_one", "11_two")) == ["11_two"]
    shown = [load(book.NOTEBOOKS / f"{name}.ipynb")["cells"][1]["outputs"][0]["text"] for name in ("10_one", "11_two")]
    assert shown == [["cpu\n"], ["sim\n"]]


def test_smoke_sizes_and_failures_are_shown_nowhere(notebooks, tmp_path):
    notebooks(one10="print(backend)")
    with pytest.raises(ValueError, match="notebooks of the profiles"):
        publish_outputs(finish(tmp_path / "out", "cpu", "10_one", profiles=["smoke"]))
    with pytest.raises(ValueError, match="failed notebooks: 10_one"):
        publish_outputs(finish(tmp_path / "out", "cpu", "10_one", failed=["10_one"]))


def test_a_picture_is_made_small_enough_and_white_behind():
    assert len(outputs.reduced(png(500, noise=True))) <= outputs.LARGEST_PNG
    small = Image.open(io.BytesIO(outputs.reduced(png(200, noise=False)))).convert("RGB")
    assert small.size == (200, 200) and small.getpixel((0, 0)) == (255, 255, 255)


def test_a_notebook_with_outputs_is_run_and_not_compared(ran):
    path, out = ran
    publish_outputs(out)
    notebook = load(path)
    notebook["cells"][1]["source"] = "print('something else, at smoke size')"
    path.write_text(json.dumps(notebook), encoding="utf-8")
    (path.parent / "conftest.py").write_text((ROOT / "notebooks" / "conftest.py").read_text(encoding="utf-8"), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "--nbval-lax", "-p", "no:cacheprovider", path.name]
    done = subprocess.run(command, cwd=path.parent, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout


def test_a_revision_of_digits_alone_stays_text(tmp_path):
    study = Study("x", None, tmp_path, told={"device": "d", "engine": "e"})
    study.row("FCFS", {}, "throughput", 1.0, "tok/s", 0)
    path = tmp_path / "results" / "x.csv"
    study.rows()
    for revision in ("0163608", "12e5678"):
        table = read(path).assign(revision=revision)
        table.to_csv(path, index=False)
        assert list(read(path)["revision"]) == [revision]
