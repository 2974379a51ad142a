"""What finding shared prefixes costs per engine step: ``python -m benchmarks.detection [--json]``.

One steady-state step: 500 requests wait; one running request finishes, one arrives, one is admitted. SGLang's figure is its
own schedule call (``SchedulePolicy.calc_priority`` over its ``RadixCache``), made once a step; Feather's is the whole of its
part: finish, hash and insert, find-best, add-to-batch. All four are interleaved in one run, on the same prompts.
"""

from benchmarks.cht import BLOCK, CHUNK, GROUPS, WAITING, block_hashes
from benchmarks.timing import main, spread, timed
from feather.cht import ChunkedHashTree
from feather.hashing import hash_blocks, hash_tokens
from feather.studies.sglang_peer import VERSION, Peer
from feather.studies.workloads import grouped, even_sizes, make_prefixes

LENGTHS = (5_000, 10_000, 20_000)
RUNNING = 100
STEPS = 20


class FeatherSteps:
    """The tree of a scheduler with ``RUNNING`` running and ``WAITING`` waiting requests."""

    def __init__(self, prompts: list, path_of):
        self.tree, self.path_of, self.prompts, self.next = ChunkedHashTree(), path_of, prompts, 0
        for _ in range(RUNNING + WAITING):
            self.arrive()
        for _ in range(RUNNING):
            self.tree.add_to_batch(self.tree.find_best().request_id)

    def arrive(self) -> None:
        self.tree.insert(self.next, self.path_of(self.prompts[self.next % len(self.prompts)]))
        self.next += 1

    def step(self) -> None:
        self.tree.finish(next(iter(self.tree.active)))
        self.arrive()
        self.tree.add_to_batch(self.tree.find_best().request_id)


class PeerSteps:
    """SGLang's queue beside a cache that holds every prefix and every running request."""

    def __init__(self, prompts: list, policy: str, cut_off: bool):
        self.peer, self.prompts, self.next = Peer(policy, cut_off), prompts, RUNNING
        for prompt in prompts[:RUNNING]:
            self.peer.cached(prompt)
        for _ in range(WAITING):
            self.arrive()
        self.peer.schedule()

    def arrive(self) -> None:
        self.peer.arrive(str(self.next), self.prompts[self.next % len(self.prompts)])
        self.next += 1

    def between(self) -> None:
        """What happens outside the schedule call: the first of the queue is admitted, another arrives."""
        admitted = self.peer.waiting.pop(0)
        self.peer.cached(admitted.origin_input_ids)
        self.arrive()

    def step(self) -> None:
        self.peer.schedule()


def measure(length: int) -> dict:
    prefixes = make_prefixes(GROUPS, length)
    count = RUNNING + WAITING + STEPS + 1
    prompts = [prompt.tokens for prompt in grouped(prefixes, even_sizes(count, GROUPS), seed=0).prompts]
    blocks = {id(prompt): block_hashes(prompt) for prompt in prompts}
    arms = {
        "sglang_lpm_ms": PeerSteps(prompts, "lpm", cut_off=False),
        "sglang_lpm_cut_off_ms": PeerSteps(prompts, "lpm", cut_off=True),
        "sglang_dfs_weight_ms": PeerSteps(prompts, "dfs-weight", cut_off=False),
        "feather_tokens_ms": FeatherSteps(prompts, lambda prompt: hash_tokens(prompt, CHUNK)),
        "feather_hashes_ms": FeatherSteps(prompts, lambda prompt: hash_blocks(blocks[id(prompt)], BLOCK, CHUNK)),
    }
    taken: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(STEPS):
        for name, arm in arms.items():
            if isinstance(arm, PeerSteps):
                taken[name].append(timed(arm.step) / 1e3)
                arm.between()
            else:
                taken[name].append(timed(arm.step) / 1e3)
    spreads = {name: spread(values, digits=6) for name, values in taken.items()}
    medians = {name: value["median"] for name, value in spreads.items()}
    return {
        "prompt_tokens": length,
        **medians,
        "ratio_lpm": round(medians["sglang_lpm_ms"] / medians["feather_hashes_ms"], 1),
        "ratio_dfs_weight": round(medians["sglang_dfs_weight_ms"] / medians["feather_hashes_ms"], 1),
        "spread": spreads,
    }


def run() -> dict:
    lengths = [measure(length) for length in LENGTHS]
    at_10k = next(row for row in lengths if row["prompt_tokens"] == 10_000)
    return {
        **{name: value for name, value in at_10k.items() if name not in ("prompt_tokens", "spread")},
        "sglang_version": VERSION, "waiting": WAITING, "lengths": lengths,
    }  # fmt: skip


def show(found: dict) -> None:
    print(f"one steady-state step, {WAITING} waiting, SGLang {found['sglang_version']}; medians, ms")
    names = [name for name in found["lengths"][0] if name.endswith("_ms")]
    print(f"{'prompt':>8}" + "".join(f"{name.removesuffix('_ms'):>22}" for name in names) + f"{'LPM ratio':>12}{'DFS ratio':>12}")
    for row in found["lengths"]:
        values = "".join(f"{row[name]:>22.4f}" for name in names)
        print(f"{row['prompt_tokens']:>8}{values}{row['ratio_lpm']:>12.0f}{row['ratio_dfs_weight']:>12.0f}")


if __name__ == "__main__":
    main("benchmarks.detection", __doc__.splitlines()[0], run, show)
