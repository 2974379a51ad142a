"""The data sets that a study asks for, or samples of the same form where they are not at hand."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from lab.workloads import samples
from lab.workloads.documents import Document, read_leval, read_longbench
from lab.workloads.sources import locate
from lab.workloads.traces import Trace, read_burstgpt, read_mooncake

NAMES = {"leval": "L-Eval", "longbench": "LongBench", "mooncake": "Mooncake", "burstgpt": "BurstGPT"}
READERS = {"leval": read_leval, "longbench": read_longbench, "mooncake": read_mooncake, "burstgpt": read_burstgpt}


@dataclass(frozen=True)
class Datasets:
    documents: list[Document]
    documents_name: str
    trace: Trace
    trace_name: str
    missing: str = ""
    """how to get what is not here; empty where all is"""


def load(document_files: list[str], documents_each: int, trace_file: str) -> Datasets:
    """The first ``documents_each`` documents of each file, and a trace; files as "data set/file" in the data folder
    (``workloads.sources``). Where one is not there, all are made-up samples. Raises ValueError for a file that is damaged or of
    no known data set."""
    for file in (*document_files, trace_file):
        if file.split("/")[0] not in READERS:
            raise ValueError(f"{file!r} is of no known data set: {', '.join(f'{name}/…' for name in READERS)}")
    try:
        documents = [document for file in document_files for document in _read(locate(file))[:documents_each]]
        names = " and ".join(sorted({NAMES[file.split("/")[0]] for file in document_files}))
        return Datasets(documents, names, _read(locate(trace_file)), NAMES[trace_file.split("/")[0]])
    except FileNotFoundError:
        names = sorted({file.split("/")[0] for file in (*document_files, trace_file)})
        missing = " && ".join(f"python -m lab.workloads fetch {name}" for name in names)
        with tempfile.TemporaryDirectory() as folder:
            made = samples.write(Path(folder))
            documents, trace = _read(made / "leval" / "made.jsonl"), _read(made / "mooncake" / "made.jsonl")
            return Datasets(documents, "made-up documents", trace, "made-up trace", missing)


def _read(path: Path):
    return READERS[path.parent.name](path)
