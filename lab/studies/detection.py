"""What finding shared prefixes costs per engine step, without an engine: the tree against SGLang's own scheduling code.

One steady-state step: so many requests wait; one running request finishes, one arrives, one is admitted. SGLang's part of it
is one call of ``SchedulePolicy.calc_priority`` over its ``RadixCache``; Feather's part is finish, hash and insert, find-best
and add-to-batch, all of them.
"""

import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence

import pandas as pd
from tqdm import tqdm

from feather.cht import ChunkedHashTree
from feather.hashing import hash_blocks, hash_tokens
from feather.options import Options
from feather.request import Request
from feather.sglang import missing
from lab.studies.sglang_peer import POLICIES, Peer, queues
from lab.workloads import even_sizes, grouped, make_prefixes

GROUPS, RUNNING, BLOCK, CHUNK = 5, 100, 16, 512


def block_hashes(tokens: list[int]) -> list[bytes]:
    """Stand-ins for vLLM's block hashes: 32 bytes each, cumulative."""
    return [hash_.to_bytes(8, "big") * 4 for hash_ in hash_tokens(tokens, BLOCK)]


class FeatherSteps:
    """The tree of a scheduler with ``RUNNING`` running and ``waiting`` waiting requests."""

    def __init__(self, paths: Sequence[Callable[[], Sequence[Hashable]]], waiting: int):
        self.tree, self.paths, self.next = ChunkedHashTree(), paths, 0
        for _ in range(RUNNING + waiting):
            self._arrive()
        for _ in range(RUNNING):
            self.tree.add_to_batch(self.tree.find_best().request_id)

    def step(self) -> None:
        self.tree.finish(next(iter(self.tree.active)))
        self._arrive()
        self.tree.add_to_batch(self.tree.find_best().request_id)

    def between(self) -> None:
        pass

    def _arrive(self) -> None:
        self.tree.insert(Request(self.next, self.paths[self.next % len(self.paths)]()))
        self.next += 1


class PeerSteps:
    """SGLang's queue beside a cache that holds every running request, and so every prefix."""

    def __init__(self, prompts: list[list[int]], waiting: int, policy: str, cut_off: bool = False):
        self.peer, self.prompts, self.next = Peer(policy, cut_off), prompts, RUNNING
        for prompt in prompts[:RUNNING]:
            self.peer.cached(prompt)
        for _ in range(waiting):
            self._arrive()

    def step(self) -> None:
        self.peer.schedule()

    def between(self) -> None:
        """Outside the schedule call: the first of the queue is admitted, another arrives."""
        self.peer.cached(list(self.peer.waiting.pop(0).origin_input_ids))
        self._arrive()

    def _arrive(self) -> None:
        self.peer.arrive(str(self.next), self.prompts[self.next % len(self.prompts)])
        self.next += 1


class AdapterSteps:
    """Feather's part of SGLang's step, in SGLang's own queue and with its requests: find out who has finished and who has come,
    put the one that is to be admitted first, and once it is admitted the next behind it."""

    def __init__(self, prompts: list[list[int]], waiting: int):
        self.peer, self.prompts, self.next = Peer("fcfs", cut_off=True), prompts, 0
        from feather.sglang.schedule_policy import FeatherSchedulePolicy  # on SGLang, which Peer has found

        former = Options(policy="never_stop", chunk_size=CHUNK).make_former(max_batch=RUNNING)
        self.running: deque = deque()
        self.policy = FeatherSchedulePolicy(former, CHUNK, lambda: set(self.running))
        for _ in range(RUNNING + waiting):
            self._arrive()
        for _ in range(RUNNING):
            self.step()
            self.running.append(self.peer.waiting.pop(0))
        self._replace()

    def step(self) -> None:
        queue = self.peer.waiting
        self.policy.calc_priority(queue)
        self.policy.verdict(queue[0])
        self.policy.admitted(queue[0])
        if self.policy.failure is not None:
            raise RuntimeError(f"what is to be measured has failed: {self.policy.failure}")

    def between(self) -> None:
        """Outside the schedule call: who was admitted leaves the queue, another finishes, another arrives."""
        self.running.append(self.peer.waiting.pop(0))
        self._arrive()
        self._replace()

    def _replace(self) -> None:
        self.running.popleft()

    def _arrive(self) -> None:
        self.peer.arrive(str(self.next), self.prompts[self.next % len(self.prompts)])
        self.next += 1


def measure(prompt_tokens: int, waiting: int, steps: int, cut_off: bool = False, adapter: bool = False) -> pd.DataFrame:
    """CPU time of one steady-state step under every policy, interleaved: tidy rows of policy, prompt_tokens, waiting,
    repeat, ms; of Feather alone where SGLang is not installed. The suffix of 20 tokens comes on top of ``prompt_tokens``. SGLang's policies
    are those of the installed version that look at prefixes; ``cut_off`` adds LPM (and HRRN) with SGLang's rule that they
    fall back to order of arrival above 128 waiting requests, ``adapter`` the whole of what Feather does inside SGLang."""
    count = RUNNING + waiting + steps
    prefixes = make_prefixes(GROUPS, prompt_tokens)
    prompts = [prompt.tokens for prompt in grouped(prefixes, even_sizes(count, GROUPS), seed=0).prompts]
    blocks = [block_hashes(prompt) for prompt in prompts]
    peers = not missing()
    arms = {f"SGLang {POLICIES[policy]}": PeerSteps(prompts, waiting, policy) for policy in queues()} if peers else {}
    arms |= {
        "Feather, from tokens": FeatherSteps([lambda p=prompt: hash_tokens(p, CHUNK) for prompt in prompts], waiting),
        "Feather, from block hashes": FeatherSteps([lambda b=hashes: hash_blocks(b, BLOCK, CHUNK) for hashes in blocks], waiting),
    }
    if cut_off and peers:
        for policy in {"lpm", "hrrn"} & set(queues()):
            arms[f"SGLang {POLICIES[policy]}, cut off"] = PeerSteps(prompts, waiting, policy, cut_off=True)
    if adapter and peers:
        arms["Feather in SGLang"] = AdapterSteps(prompts, waiting)
    rows = []
    for repeat in range(-1, steps):  # the first is thrown away
        for policy, arm in arms.items():
            start = time.perf_counter()
            arm.step()
            taken = time.perf_counter() - start
            arm.between()
            if repeat >= 0:
                rows.append({"policy": policy, "prompt_tokens": prompt_tokens, "waiting": waiting, "repeat": repeat, "ms": taken * 1e3})
    return pd.DataFrame(rows)


def sweep(prompt_tokens: Sequence[int], waiting: Sequence[int], steps: int) -> pd.DataFrame:
    """``measure``, with all that Feather does inside SGLang, over prompt lengths at the longest queue, and over queue lengths at 10 000
    tokens (or the longest)."""
    deepest, length = max(waiting), length_shown(prompt_tokens)
    points = [(tokens, deepest) for tokens in prompt_tokens] + [(length, queue) for queue in waiting if queue != deepest]
    return pd.concat(
        [measure(*point, steps, adapter=True) for point in tqdm(points, desc="prefix detection", unit="point")], ignore_index=True
    )


def length_shown(prompt_tokens: Sequence[int]) -> int:
    """The prompt length at which queues of other lengths are measured."""
    return 10_000 if 10_000 in prompt_tokens else max(prompt_tokens)
