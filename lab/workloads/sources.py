"""Which data sets there are, where their publishers have them, and where they lie here."""

import os
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "data" / "fetched"


@dataclass(frozen=True)
class File:
    """One file to fetch. Without a checksum the first copy fetched is trusted, and later ones are held against it."""

    path: str
    """in the data folder"""
    url: str
    sha256: str | None = None
    bytes: int | None = None
    unpack: str | None = None
    """of a zip archive: the members that match this pattern are unpacked beside it"""


@dataclass(frozen=True)
class Source:
    name: str
    what: str
    page: str
    files: tuple[File, ...]


_LEVAL = "https://raw.githubusercontent.com/OpenLMLab/LEval/main/LEval-data/"
_MOONCAKE = "https://raw.githubusercontent.com/kvcache-ai/Mooncake/main/FAST25-release/traces/"


def _leval(path: str, sha256: str | None = None, size: int | None = None) -> File:
    return File("leval/" + path.split("/")[-1], _LEVAL + path, sha256, size)


def _mooncake(name: str, sha256: str | None = None, size: int | None = None) -> File:
    return File("mooncake/" + name, _MOONCAKE + name, sha256, size)


SOURCES = {
    source.name: source
    for source in (
        Source("leval", "L-Eval, six tasks: questions on long documents (GPL-3.0)", "https://github.com/OpenLMLab/LEval", (
            _leval("Closed-ended-tasks/coursera.jsonl", "03ef77fcbd191545ee9f750487d1e6b209352e6440cadc6671f0c9f4fcb753a5", 645_218),
            _leval("Closed-ended-tasks/quality.jsonl", "e12593a3da249dc1f769d10e07da896a524917f278900a6f6ef42e7fd4daa67b", 467_997),
            _leval("Closed-ended-tasks/tpo.jsonl", "7596d085ddc8e11418d53e956b492f9cba7087c2fc1b516508a26257eed1a57e", 330_384),
            _leval("Open-ended-tasks/financial_qa.jsonl", "e6507e3a195af133f254edf663b0fcaa8df1fc5912cd50a84e575df152912158", 234_032),
            _leval("Open-ended-tasks/paper_assistant.jsonl", "b2bdded86ee285f99f6371065014d47a22350718b68dd1e99839883d663380b1", 1_028_259),
            _leval("Open-ended-tasks/scientific_qa.jsonl", "db11d9cc4c928a3dc4bef6075a8223b785a117b4066439d4c55e6bc4e817f4c0", 504_366),
        )),
        Source("longbench", "LongBench: questions on documents, 21 tasks in one archive",
               "https://huggingface.co/datasets/THUDM/LongBench", (
            File("longbench/data.zip", "https://huggingface.co/datasets/THUDM/LongBench/resolve/main/data.zip", unpack="*.jsonl"),
        )),
        Source("mooncake", "Mooncake's traces: times, lengths and block hashes of real requests (Apache-2.0)",
               "https://github.com/kvcache-ai/Mooncake", (
            _mooncake("conversation_trace.jsonl", "b8cbb061a85206d729d91cdc2981f43c9e0d99209dce588d3af5f7934408b9df", 3_029_533),
            _mooncake("toolagent_trace.jsonl"),
            _mooncake("synthetic_trace.jsonl"),
        )),
        Source("burstgpt", "BurstGPT: times and lengths of requests to hosted GPT models", "https://github.com/HPMLL/BurstGPT", (
            File("burstgpt/BurstGPT_1.csv", "https://github.com/HPMLL/BurstGPT/releases/download/v1.1/BurstGPT_1.csv"),
        )),
    )
}  # fmt: skip


def source(name: str) -> Source:
    """Raises ValueError for a name that there is not."""
    if name not in SOURCES:
        close = get_close_matches(name, SOURCES, n=1)
        raise ValueError(f"no data set {name!r}: " + (f"did you mean {close[0]!r}?" if close else f"there are {', '.join(SOURCES)}"))
    return SOURCES[name]


def folder() -> Path:
    """The data folder: what ``FEATHER_DATA`` names, else ``data/fetched`` in the repository. Raises ValueError where the
    variable names no folder."""
    named = os.environ.get("FEATHER_DATA")
    if named and not Path(named).is_dir():
        raise ValueError(f"FEATHER_DATA={named} is no folder; name the one that has the data sets, or unset it")
    return Path(named) if named else FOLDER


def locate(path: str) -> Path:
    """A file of a data set, e.g. "leval/quality.jsonl", in the data folder, or the same compressed (".gz"). Raises FileNotFoundError where it is not there,
    ValueError where it is shorter or longer than the published one."""
    name = path.split("/")[0]
    found = folder() / path
    if not found.is_file() and (packed := found.with_name(f"{found.name}.gz")).is_file():
        return packed
    if not found.is_file():
        raise FileNotFoundError(
            f"{found} is not there: python -m lab.workloads fetch {name}, or set FEATHER_DATA to the folder that has {path}"
        )
    known = next((file.bytes for file in source(name).files if file.path == path), None)
    if known is not None and found.stat().st_size != known:
        raise ValueError(
            f"{found} has {found.stat().st_size} bytes and the published file {known}: it was cut off or changed; "
            f"python -m lab.workloads fetch {name} fetches it again"
        )
    return found
