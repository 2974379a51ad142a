"""Outputs of a run in the notebooks of the checkout, so that a notebook shows its figures where code is read.

A notebook that measures shows a measured run, one that only models a modelled run. Which run it was stands in the notebook's metadata
(``feather``), beside a hash of the code that was run, and as the output of its parameters cell.
"""

import base64
import hashlib
import io
import json
from pathlib import Path

from PIL import Image

from lab import book
from lab.artifact.recorded import engine
from lab.files import replace

LARGEST_PNG = 150_000  # bytes; figures are about 50 kB
_COLOURS = (256, 128, 64)
_WIDEST = 1600  # pixels
_COMPARED = "nbval-check-output"  # the tag of a cell whose outputs a test compares: they are part of the test and stay


def code_hash(notebook: dict) -> str:
    """Changes with any of a notebook's code cells."""
    return hashlib.sha256(json.dumps(_code(notebook)).encode()).hexdigest()


def complaint(name: str) -> str:
    """What is wrong with the outputs of a notebook of the checkout, in one line with the mend; "" for one that is right or has none."""
    notebook = _load(book.ENTRIES[name].source())
    if not any(cell.get("outputs") for cell in _code_cells(notebook) if _COMPARED not in _tags(cell)):
        return ""
    mend = (
        f"run it (./run_all.sh --only {book.ENTRIES[name].number}) and put them in (python -m lab.artifact.publish --outputs-only out), "
        "or clear its outputs"
    )
    if "feather" not in notebook["metadata"]:
        return f"notebooks/{name}.ipynb: nothing says which run its outputs are of; {mend}"
    if notebook["metadata"]["feather"]["code"] != code_hash(notebook):
        return f"notebooks/{name}.ipynb: its outputs are older than the code they show; {mend}"
    return ""


def to_show(out: Path, run: dict) -> list[str]:
    """The notebooks of the finished run in ``out`` (``run``: its run.json) whose outputs the checkout is to show. Raises ValueError where
    one has other code in the checkout than was run, or was not kept."""
    modelled = run["backend"] == "sim"
    names = [name for name in run["seconds"] if name in book.ENTRIES and book.ENTRIES[name].measures != modelled]
    for name in names:
        executed = out / "notebooks" / f"{name}.ipynb"
        if not executed.exists():
            raise ValueError(f"{executed} is missing: run {name} again")
        if _code(_load(executed)) != _code(_load(book.ENTRIES[name].source())):
            raise ValueError(f"notebooks/{name}.ipynb has other code than was run into {out}: run it again, or take its changes back")
    return names


def put_in(out: Path, run: dict, names: list[str]) -> None:
    """Copy the outputs of the named notebooks of a finished run into those of the checkout, cell by cell."""
    for name in names:
        entry = book.ENTRIES[name]
        executed, notebook = _load(out / "notebooks" / f"{name}.ipynb"), _load(entry.source())
        state = json.loads((out / "state" / f"{name}.json").read_text(encoding="utf-8"))
        about = {
            "profile": state["profile"],
            "backend": run["backend"],
            "device": run["device"],
            "engine": engine(run),
            "revision": state["revision"],
            "time": executed["metadata"]["papermill"]["end_time"][:16].replace("T", " ") + " UTC",
        }
        places = {str(out.absolute()): "out", str(book.ROOT): "."}  # a reader has them elsewhere
        for number, (cell, ran) in enumerate(zip(_code_cells(notebook), _code_cells(executed), strict=True), 1):
            if _COMPARED in _tags(cell):
                continue
            cell["execution_count"] = number  # as if each had been run once, whatever the runner put between
            cell["outputs"] = [kept for output in ran["outputs"] if (kept := _kept(output, number, places))]
            if "parameters" in _tags(cell):
                cell["outputs"].insert(0, {"output_type": "stream", "name": "stdout", "text": _told(about, executed, entry)})
        notebook["metadata"]["feather"] = {"run": about, "code": code_hash(notebook)}
        replace(entry.source(), json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


def _told(about: dict, executed: dict, entry: book.Entry) -> str:
    """Which run the outputs are of, and with which parameters where those are not the notebook's own."""
    given = executed["metadata"]["papermill"].get("parameters", {})
    changed = [f"{name} = {value!r}" for name, value in given.items() if name not in ("backend", "out") and value != entry.own(name)]
    return (
        f"The outputs below are of a run with profile {about['profile']} on backend {about['backend']} ({about['device']}): {about['engine']}, "
        f"Feather {about['revision']}, {about['time']}.\n" + (f"It was given: {', '.join(changed)}.\n" if changed else "")
    )


def _kept(output: dict, number: int, places: dict[str, str]) -> dict | None:
    """An output as it is committed; None for one that is not: chatter on stderr, logs of other processes, and widgets, which need a kernel."""
    if output["output_type"] == "stream":
        own = uncoloured("".join(output["text"])) if output["name"] != "stderr" else ""
        return {**output, "text": _elsewhere(own, places)} if own.strip() else None
    if output["output_type"] not in ("display_data", "execute_result"):
        return output
    data = dict(output["data"])
    if "application/vnd.jupyter.widget-view+json" in data:
        return None
    for kind, value in data.items():
        if kind == "image/png":
            data[kind] = base64.b64encode(reduced(base64.b64decode("".join(value)))).decode()
        elif kind.startswith("text/"):
            data[kind] = _elsewhere(value, places)
    kept = {"output_type": output["output_type"], "data": data, "metadata": output.get("metadata", {})}
    return {**kept, "execution_count": number} if output["output_type"] == "execute_result" else kept


def uncoloured(text: str) -> str:
    """Without the lines that have colours: logs that another process has printed."""
    return "".join(line for line in text.splitlines(keepends=True) if "\x1b[" not in line)


def _elsewhere(text: str | list[str], places: dict[str, str]) -> list[str]:
    text = "".join(text)
    for place, name in places.items():
        text = text.replace(place, name)
    return text.splitlines(keepends=True)


def reduced(png: bytes) -> bytes:
    """The picture on white with a palette, in as many colours and pixels as keep it below ``LARGEST_PNG``; itself where it is smaller."""
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    image.thumbnail((_WIDEST, 10 * _WIDEST))
    while True:
        for colours in _COLOURS:
            written = io.BytesIO()
            image.quantize(colours, dither=Image.Dither.NONE).save(written, format="PNG", optimize=True)
            found = min(png, written.getvalue(), key=len)
            if len(found) <= LARGEST_PNG:
                return found
        image = image.resize((image.width * 4 // 5, image.height * 4 // 5))


def _load(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def _tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


def _code_cells(notebook: dict) -> list[dict]:
    """Those that were written, not the one that a runner puts its parameters into."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code" and "injected-parameters" not in _tags(cell)]


def _code(notebook: dict) -> list[str]:
    return ["".join(cell["source"]) for cell in _code_cells(notebook)]
