"""Recorded traffic: Mooncake's traces, which tell what requests share, and BurstGPT, which tells only when and how long."""

from collections import defaultdict
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from lab.workloads.arrivals import at_rate
from lab.workloads.lines import DataError, csv_lines, json_lines
from lab.workloads.workload import FIRST_TOKEN, VOCABULARY, Prompt, Workload

BLOCK = 512  # tokens that one hash id of a Mooncake trace stands for (arXiv 2407.00079)


@dataclass(frozen=True)
class Recorded:
    """One request of a trace."""

    time: float
    """seconds"""
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()
    """an id for each ``BLOCK`` tokens of the input, the last one perhaps of fewer; equal ids are equal tokens"""


@dataclass(frozen=True)
class Trace:
    requests: list[Recorded]
    """by time"""
    note: str = ""
    """what of the file is not in it"""


def read_mooncake(path: Path) -> Trace:
    """A trace of Mooncake (FAST 2025). Raises DataError."""
    requests = []
    fields = {"timestamp": float, "input_length": int, "output_length": int, "hash_ids": list}
    for line, record in json_lines(path, fields):
        blocks = tuple(record["hash_ids"])
        if record["timestamp"] < 0:
            raise DataError(path, line, f"'timestamp' is {record['timestamp']}: a time before the trace begins")
        for name in ("input_length", "output_length"):
            if record[name] < 1:
                raise DataError(path, line, f"{name!r} is {record[name]}: a request has at least one token")
        if not all(type(block) is int and block >= 0 for block in blocks):
            raise DataError(path, line, "'hash_ids' holds something that is no id")
        if len(blocks) != -(-record["input_length"] // BLOCK):
            raise DataError(path, line, f"{len(blocks)} 'hash_ids' for {record['input_length']} tokens in blocks of {BLOCK}")
        requests.append(Recorded(record["timestamp"] / 1e3, record["input_length"], record["output_length"], blocks))
    return Trace(sorted(requests, key=lambda request: request.time))


def read_burstgpt(path: Path) -> Trace:
    """A trace of BurstGPT (arXiv 2401.17644), in which a request without response tokens failed: those are left out, and
    the trace's note counts them. Raises DataError."""
    requests, failed = [], 0
    columns = {"time": "Timestamp", "input": "Request tokens", "output": "Response tokens"}
    for line, row in csv_lines(path, list(columns.values())):
        if row[columns["time"]] < 0:
            raise DataError(path, line, f"'Timestamp' is {row[columns['time']]:g}: a time before the trace begins")
        for name in (columns["input"], columns["output"]):
            if row[name] < 0 or row[name] != int(row[name]):
                raise DataError(path, line, f"{name!r} is {row[name]:g}: a number of tokens is expected")
        if row[columns["output"]] == 0:
            failed += 1
        elif row[columns["input"]] == 0:
            raise DataError(path, line, f"{columns['input']!r} is 0: a request has at least one token")
        else:
            requests.append(Recorded(row[columns["time"]], int(row[columns["input"]]), int(row[columns["output"]])))
    note = f"{failed} failed requests, which have no response, left out" if failed else ""
    return Trace(sorted(requests, key=lambda request: request.time), note)


def conversations(trace: Trace) -> list[list[Recorded]]:
    """The requests of a trace by what they share: those with the same block at the first place at which not all requests
    agree. In Mooncake's conversations all begin with one block, the system prompt, and go apart after it."""
    common, longer = 0, [request.blocks for request in trace.requests if request.blocks]
    while len(longer) > 1 and len({blocks[common] for blocks in longer}) == 1:
        common += 1
        longer = [blocks for blocks in longer if len(blocks) > common]
    found: dict[object, list[Recorded]] = defaultdict(list)
    for number, request in enumerate(trace.requests):
        # Whoever ends where all still agree shares no more than that: a conversation of its own.
        key = request.blocks[common] if len(request.blocks) > common else ("alone", number)
        found[key].append(request)
    return list(found.values())


def replay(
    trace: Trace,
    seed: int,
    requests: int,
    block_tokens: int = BLOCK,
    requests_per_s: float | None = None,
    most_tokens: int = 16_384,
) -> Workload:
    """``requests`` of a trace, on an empty prefix cache: conversations drawn by ``seed``, each with its requests in order,
    so that the drawn part shares what the trace shares.

    Lengths, of prompts and of answers, are scaled by ``block_tokens / BLOCK``, block by block: equal ids stay equal tokens.
    Times are scaled to a mean rate of ``requests_per_s``, or all requests are there at the start. Prompts are cut so that
    with the answer they fit ``most_tokens``. Raises ValueError where the trace has too few requests."""
    if not 0 < requests <= len(trace.requests):
        raise ValueError(f"requests={requests}: the trace has {len(trace.requests)}")
    rng = np.random.default_rng(seed)
    every = conversations(trace)
    drawn: list[tuple[int, Recorded]] = []
    for group in rng.permutation(len(every)):
        drawn += [(int(group), request) for request in every[group]]
        if len(drawn) >= requests:
            break
    drawn = sorted(drawn[:requests], key=lambda one: one[1].time)
    times, faster = [0.0] * requests, 1.0
    if requests_per_s is not None:
        times, faster = at_rate([request.time for _, request in drawn], requests_per_s)
    prompts, cut = [], 0
    for (group, request), time in zip(drawn, times):
        answer = min(max(1, round(request.output_tokens * block_tokens / BLOCK)), most_tokens - 1)
        tokens = _tokens(request, block_tokens, rng)
        cut += len(tokens) > most_tokens - answer
        prompts.append(Prompt(tokens[: most_tokens - answer], group, answer, time))
    when = f"time {faster:.0f} times faster, {requests_per_s:g} requests a second" if requests_per_s else "all there at the start"
    note = (
        f"{requests} of the trace's {len(trace.requests)} requests, by whole conversations (but the last); "
        f"lengths times {Fraction(block_tokens, BLOCK)}; {when}"
        + (f"; {cut} prompts cut to fit {most_tokens} tokens" if cut else "")
        + (f"; {trace.note}" if trace.note else "")
    )
    return Workload(prompts, warm=False, note=note)


def _tokens(request: Recorded, block_tokens: int, rng: np.random.Generator) -> list[int]:
    if not request.blocks:
        return rng.integers(FIRST_TOKEN, VOCABULARY, max(1, round(request.input_tokens * block_tokens / BLOCK))).tolist()
    tokens: list[int] = []
    for place, block in enumerate(request.blocks):
        length = min(BLOCK, request.input_tokens - place * BLOCK)
        of_block = np.random.default_rng(block).integers(FIRST_TOKEN, VOCABULARY, block_tokens)
        tokens += of_block[: max(1, round(length * block_tokens / BLOCK))].tolist()
    return tokens
