"""Recorded traffic: Mooncake's traces, which tell what requests share, and BurstGPT, which tells only when and how long."""

from collections import defaultdict
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from lab.workloads.arrivals import at_rate
from lab.workloads.lines import Records, Wrong, read_csv, read_json
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

    @property
    def tells_sharing(self) -> bool:
        """Whether it says what its requests share."""
        return any(request.blocks for request in self.requests)


def read_mooncake(path: Path) -> Trace:
    """A trace of Mooncake (FAST 2025). Raises DataError."""
    fields = {"timestamp": float, "input_length": int, "output_length": int, "hash_ids": list}
    return _trace(read_json(path, fields, _of_mooncake))


def read_burstgpt(path: Path) -> Trace:
    """A trace of BurstGPT (arXiv 2401.17644), in which a request without response tokens failed. Raises DataError."""
    return _trace(read_csv(path, list(_COLUMNS), _of_burstgpt))


_COLUMNS = ("Timestamp", "Request tokens", "Response tokens")


def _of_mooncake(record: dict) -> Recorded:
    blocks = tuple(record["hash_ids"])
    _check_time(record, "timestamp")
    for name in ("input_length", "output_length"):
        if record[name] < 1:
            raise Wrong(f"{name!r} is {record[name]}: a request has at least one token", f"requests in which {name!r} is below 1")
    if not all(type(block) is int and 0 <= block < 2**64 for block in blocks):
        raise Wrong("'hash_ids' holds something that is no id", "requests in which 'hash_ids' holds something that is no id")
    if len(blocks) != -(-record["input_length"] // BLOCK):
        wrong = f"{len(blocks)} 'hash_ids' for {record['input_length']} tokens in blocks of {BLOCK}"
        raise Wrong(wrong, "requests whose length does not fit their 'hash_ids'")
    return Recorded(record["timestamp"] / 1e3, record["input_length"], record["output_length"], blocks)


def _of_burstgpt(row: dict[str, float]) -> Recorded:
    time, asked, answered = (row[name] for name in _COLUMNS)
    _check_time(row, "Timestamp")
    for name in _COLUMNS[1:]:
        if row[name] < 0 or row[name] != int(row[name]):
            raise Wrong(f"{name!r} is {row[name]:g}: a number of tokens is expected", f"requests in which {name!r} is no number of tokens")
    if answered == 0:
        raise Wrong("'Response tokens' is 0: the request failed", "failed requests, which have no response")
    if asked == 0:
        raise Wrong("'Request tokens' is 0: a request has at least one token", "requests without a token")
    return Recorded(time, int(asked), int(answered))


def _check_time(record: dict, name: str) -> None:
    if record[name] < 0:
        wrong = f"{name!r} is {record[name]:g}: a time before the trace begins"
        raise Wrong(wrong, "requests from before the trace begins")


def _trace(records: Records[Recorded]) -> Trace:
    return Trace(sorted(records.made, key=lambda request: request.time), records.note)


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
    """``requests`` of a trace that came one after the other, on an empty prefix cache; ``seed`` says where they begin. A stretch of the
    trace keeps its bursts, which single requests or conversations drawn from all of it do not. A prompt's group is its conversation.

    Lengths, of prompts and of answers, are scaled by ``block_tokens / BLOCK``, block by block: equal ids stay equal tokens.
    Times are scaled to a mean rate of ``requests_per_s``, or all requests are there at the start. Prompts are cut so that
    with the answer they fit ``most_tokens``. Raises ValueError where the trace has too few requests."""
    if not 0 < requests <= len(trace.requests):
        raise ValueError(f"requests={requests}: the trace has {len(trace.requests)}")
    rng = np.random.default_rng(seed)
    first = int(rng.integers(len(trace.requests) - requests + 1))
    drawn = trace.requests[first : first + requests]
    group_of = {id(request): group for group, talk in enumerate(conversations(trace)) for request in talk}
    times, faster = [0.0] * requests, 0.0
    if requests_per_s is not None:
        times, faster = at_rate([request.time for request in drawn], requests_per_s)
    prompts, cut = [], 0
    for request, time in zip(drawn, times):
        answer = min(max(1, round(request.output_tokens * block_tokens / BLOCK)), most_tokens - 1)
        tokens = _tokens(request, block_tokens, rng, most_tokens - answer + 1)
        cut += len(tokens) > most_tokens - answer
        prompts.append(Prompt(tokens[: most_tokens - answer], group_of[id(request)], answer, time))
    when = (
        f"time {faster:{'.0f' if faster >= 10 else '.2g'}} times faster, {requests_per_s:g} requests a second"
        if times[-1]
        else "all there at the start"
    )
    note = (
        f"requests {first + 1} to {first + requests} of the trace's {len(trace.requests)}; "
        f"lengths times {Fraction(block_tokens, BLOCK)}; {when}"
        + (f"; {cut} prompts cut to fit {most_tokens} tokens" if cut else "")
        + (f"; {trace.note}" if trace.note else "")
    )
    return Workload(prompts, warm=False, note=note)


def _tokens(request: Recorded, block_tokens: int, rng: np.random.Generator, most: int) -> list[int]:
    """At most ``most`` of its tokens: a recorded length may be absurd."""
    if not request.blocks:
        length = max(1, round(request.input_tokens * block_tokens / BLOCK))
        return rng.integers(FIRST_TOKEN, VOCABULARY, min(length, most)).tolist()
    tokens: list[int] = []
    for place, block in enumerate(request.blocks):
        if len(tokens) >= most:
            break
        length = min(BLOCK, request.input_tokens - place * BLOCK)
        of_block = np.random.default_rng(block).integers(FIRST_TOKEN, VOCABULARY, block_tokens)
        tokens += of_block[: max(1, round(length * block_tokens / BLOCK))].tolist()
    return tokens
