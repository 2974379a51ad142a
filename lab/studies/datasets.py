"""Real documents and real traffic: what is left of the gain on them (E11). Samples of the same form take the place of data sets that are
not at hand."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lab import figures
from lab.engines.arms import MAIN_ARMS
from lab.studies import comparing, words
from lab.studies.comparing import over
from lab.studies.evaluation import over_workload, scaled
from lab.studies.study import Study
from lab.studies.words import times, told
from lab.workloads import samples
from lab.workloads.documents import Document, Reading, gathered, read_leval, read_longbench
from lab.workloads.sources import locate
from lab.workloads.traces import BLOCK, Trace, conversations, read_burstgpt, read_mooncake, replay

NAMES = {"leval": "L-Eval", "longbench": "LongBench", "mooncake": "Mooncake", "burstgpt": "BurstGPT"}
READERS = {"leval": read_leval, "longbench": read_longbench, "mooncake": read_mooncake, "burstgpt": read_burstgpt}


@dataclass(frozen=True)
class Datasets:
    """Documents with questions about them, and a trace of requests."""

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
        read = {file: _read(locate(file)) for file in document_files}
        notes = "; ".join(f"{file}: {found.note}" for file, found in read.items() if found.note)
        documents = gathered([document for found in read.values() for document in found[:documents_each]], notes)
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


@dataclass(frozen=True)
class Cut:
    """How a trace is cut to the machine: ``requests`` of it, arriving ``requests_per_s``, with ``block_tokens`` in place of each block of 512."""

    requests: int
    block_tokens: int
    requests_per_s: float

    @property
    def factor(self) -> float:
        """of its lengths"""
        return self.block_tokens / BLOCK

    def replay(self, trace: Trace, seed: int):
        return replay(trace, seed, self.requests, self.block_tokens, self.requests_per_s)


def questions(study: Study, data: Datasets, reading: Reading, asked: int | None, kernels: Sequence[str], repeats: int) -> pd.DataFrame:
    """Rows of questions on the documents, which are in the prefix cache, under each attention kernel; all are there at the start. ``asked``: so
    many of them; None: all. Raises RuntimeError where the documents were not in the cache."""
    study.engine.warm(reading.prefixes)
    parameters = {
        "case": f"{data.documents_name}, cached",
        "document tokens": max(map(len, reading.prefixes)),
        "documents": len(data.documents),
    }
    conditions = over_workload(study.engine, lambda seed, salt: reading.workload(seed, salt, asked), parameters)
    table = study.measure(conditions, repeats, kernels=kernels)
    if (least := table[table["metric"] == "prefix hits"]["value"].min()) < 0.85:
        raise RuntimeError(f"only {least:.0%} of the prompt tokens were in the prefix cache: the documents were not")
    return table


def traffic(study: Study, data: Datasets, cut: Cut, repeats: int) -> pd.DataFrame:
    """Rows of a replay of the trace on an empty prefix cache. What is counted in tokens in Feather's options is scaled with its lengths. Raises
    RuntimeError where the requests shared nothing, or everything."""
    parameters = {
        "case": f"{data.trace_name}, cold cache",
        "trace scale": cut.factor,
        "requests": cut.requests,
        "requests per s": cut.requests_per_s,
    }
    arms = scaled(MAIN_ARMS, cut.factor)
    table = study.measure(over_workload(study.engine, lambda seed, salt: cut.replay(data.trace, seed), parameters, arms), repeats)
    hits = table[table["metric"] == "prefix hits"]["value"]
    if not 0 <= hits.min() <= hits.max() < 1 or bool(hits.max() > 0) != data.trace.tells_sharing:
        told = "some of their blocks" if data.trace.tells_sharing else "nothing that it tells of"
        raise RuntimeError(
            f"from {hits.min():.0%} to {hits.max():.0%} of the prompt tokens were shared, and requests of {data.trace_name} share {told}"
        )
    return table


def sharing(trace: Trace) -> str:
    """How much of a trace there is to group."""
    if not trace.tells_sharing:
        return f"{len(trace.requests)} requests; the trace does not tell what they share"
    talks = conversations(trace)
    alone = sum(len(talk) == 1 for talk in talks)
    return f"{len(trace.requests)} requests in {len(talks)} conversations; {alone} conversations ({100 * alone / len(talks):.0f} %) have one request only"


def draw(study: Study, data: Datasets, reading: Reading, asked: int | None, cut: Cut, documents: pd.DataFrame, trace: pd.DataFrame) -> None:
    """Throughput, and beside it what requests wait, over FCFS's on documents and on the trace under the first kernel; then the documents under
    each kernel."""
    runs, documents = documents, comparing.judged(documents)
    figure = figures.ratio_bars_beside(pd.concat([documents, trace]), comparing.BESIDE_AS_RATIOS, "FCFS", "case")
    notes = f"Documents: {reading.workload(1, 0, asked).note}. Trace: {cut.replay(data.trace, 1).note}."
    figures.note(figure, notes)
    finding = f"Feather over FCFS: {told(over(documents, 'Feather'))} on {data.documents_name}, {told(over(trace, 'Feather'))} on a replay of {data.trace_name}"
    setting = f"documents: all questions there at the start; trace: as its requests came; batch {study.engine.max_batch}; "
    caption = (
        f"Throughput and p99 time to first token over FCFS's on {data.documents_name} and on a replay of {data.trace_name} (E11). {notes}"
    )
    study.figure(figure, "e11_datasets", finding, setting + figures.spread(comparing.repeats(documents)), caption)
    comparing.draw_kernels(
        study,
        runs,
        "Feather",
        "e11_kernels",
        f"questions on {data.documents_name}, all there at the start, batch {study.engine.max_batch}",
        f"Throughput and p99 time to first token on {data.documents_name} under each attention kernel (E11).",
    )


def verdict(study: Study, data: Datasets, cut: Cut, documents: pd.DataFrame, trace: pd.DataFrame) -> None:
    """E11 by the default policy on the documents; none on made-up samples."""
    if data.missing:
        mend = f"The data sets are not here: {data.missing} && ./run_all.sh --only {study.name[:2]}; or set FEATHER_DATA to the folder that has them."
        print(study.not_run("E11", mend))
        return
    kernels = comparing.kernels(documents, lambda table: over(table, "Feather"))
    documents = comparing.judged(documents)
    shared = trace[trace["metric"] == "prefix hits"]["value"].median()
    longest = documents["document tokens"].iloc[0]
    reason = (
        f"{data.documents_name} ({len(data.documents)} documents, at most {longest} tokens of each), the default policy; never stop: "
        f"{over(documents, 'Feather (never stop)')}; p99 time to first token over FCFS's: {times(over(documents, 'Feather', metric=comparing.P99))}. "
        f"On {data.trace_name} at 1/{1 / cut.factor:g} of its lengths: {over(trace, 'Feather')} and {over(trace, 'Feather (never stop)')}; "
        f"{100 * shared:.0f} % of its prompt tokens come from the cache under any policy: "
        + (
            "the system prompt and earlier turns of the same conversation."
            if data.trace.tells_sharing
            else "it does not tell what its requests share."
        )
    )
    if "LongBench" not in data.documents_name:
        reason += " LongBench, the claim's other data set, is in no profile; document_files takes its files."
    print(study.claim("E11", over(documents, "Feather"), reason + kernels))


def found(data: Datasets, documents: pd.DataFrame, trace: pd.DataFrame) -> str:
    """What was found, as Markdown; under the first kernel, where none is named."""
    runs, documents = documents, comparing.judged(documents)

    def both(table: pd.DataFrame) -> str:
        waits = over(table, "Feather", metric=comparing.P99)
        return (
            f"Feather {told(over(table, 'Feather'))} over FCFS, its order alone {told(over(table, 'Feather (never stop)'))}, strictly homogeneous batches "
            f"{told(over(table, 'oracle (stop)'))}. Feather's p99 time to first token is {times(waits)} FCFS's."
        )

    shared = {
        name: table[table["metric"] == "prefix hits"]["value"].median() for name, table in (("documents", documents), ("trace", trace))
    }
    return words.bullets([
        "**Samples.** The data sets are not here: these are made-up ones of the same form, and say nothing of E11." if data.missing else "",
        f"**{data.documents_name}.** {both(documents)} {100 * shared['documents']:.0f} % of the prompt tokens come from the cache.",
        comparing.found_by_kernel(runs, f"questions on {data.documents_name}"),
        f"**{data.trace_name}.** {both(trace)} {100 * shared['trace']:.0f} % of the prompt tokens come from the cache. {sharing(data.trace)}.",
        words.TRANSIENT + " Nor are the trace's, which comes faster than it can be served.",
    ])  # fmt: skip
