"""How long the Chunked Hash Tree's operations take: ``python -m benchmarks.cht [--json]``.

Prompts of 10 020 tokens (10 000 shared by a group, 20 of their own), chunks of 512, 500 waiting requests. ``scaling``
times a whole decision (find-best, add-to-batch, finish) beside one running request that shares only the first chunk, so
that *all* waiting requests share the nodes that enter and leave the working set; over at least as many decisions as requests
wait, so that the compaction of stale heap entries falls into the clock as often as it is due. Its figure is therefore the mean.
"""

import random

from benchmarks.timing import main, spread, timed
from feather.cht import ChunkedHashTree
from feather.hashing import hash_blocks, hash_tokens
from feather.request import Request
from lab.studies.detection import BLOCK, CHUNK, block_hashes

PREFIX, SUFFIX, WAITING, GROUPS = 10_000, 20, 500, 5
SCALES = (100, 1_000, 10_000, 100_000)


def make_prompts(count: int, groups: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    prefixes = [[rng.randrange(32_000) for _ in range(PREFIX)] for _ in range(groups)]
    return [prefixes[i % groups] + [rng.randrange(32_000) for _ in range(SUFFIX)] for i in range(count)]


def filled(paths: list) -> ChunkedHashTree:
    tree = ChunkedHashTree()
    for number, path in enumerate(paths):
        tree.insert(Request(number, path))
    return tree


def inserts(repeats: int = 2_000) -> dict[str, list[float]]:
    prompts = make_prompts(WAITING + 50, GROUPS)
    blocks = [block_hashes(prompt) for prompt in prompts]
    from_tokens = filled([hash_tokens(prompt, CHUNK) for prompt in prompts[:WAITING]])
    from_blocks = filled([hash_blocks(hashes, BLOCK, CHUNK) for hashes in blocks[:WAITING]])
    taken: dict[str, list[float]] = {"tokens": [], "block_hashes": []}
    for repeat in range(repeats):
        new = WAITING + repeat % 50
        taken["tokens"].append(timed(lambda: from_tokens.insert(Request("new", hash_tokens(prompts[new], CHUNK)))))
        taken["block_hashes"].append(timed(lambda: from_blocks.insert(Request("new", hash_blocks(blocks[new], BLOCK, CHUNK)))))
        from_tokens.remove("new")
        from_blocks.remove("new")
    return taken


def rounds(repeats: int = 40) -> dict[str, list[float]]:
    """Forming one batch of all 500: the whole round, and each find-best in it on its own."""
    paths = [hash_tokens(prompt, CHUNK) for prompt in make_prompts(WAITING, GROUPS)]
    taken: dict[str, list[float]] = {"round": [], "find_best": []}

    def form_batch(tree):
        while (best := tree.find_best()) is not None:
            tree.add_to_batch(best.request_id)

    for _ in range(repeats):
        tree = filled(paths)
        taken["round"].append(timed(lambda: form_batch(tree)))
        tree = filled(paths)
        for _ in range(WAITING):
            taken["find_best"].append(timed(tree.find_best))
            tree.add_to_batch(tree.find_best().request_id)
    return taken


def decisions(waiting: int) -> float:
    path = hash_tokens(make_prompts(1, 1)[0], CHUNK)
    tree = filled([path] * waiting)
    tree.insert(Request("running", [path[0], "of its own"]))
    tree.add_to_batch("running")
    total, count = 0.0, max(2_000, 2 * waiting)

    def decide():
        best = tree.find_best().request_id
        tree.add_to_batch(best)
        tree.finish(best)

    for number in range(count):
        total += timed(decide)
        tree.insert(Request(waiting + number, path))
    return total / count


def run() -> dict:
    inserted, formed = inserts(), rounds()
    scaling = [{"waiting": waiting, "decision_us": round(decisions(waiting), 3)} for waiting in SCALES]
    spreads = {
        "insert_tokens_us": spread(inserted["tokens"]),
        "insert_block_hashes_us": spread(inserted["block_hashes"]),
        "find_best_us": spread(formed["find_best"]),
        "decision_round_us": spread(formed["round"]),
    }
    return {**{name: value["median"] for name, value in spreads.items()}, "scaling": scaling, "spread": spreads}


def show(found: dict) -> None:
    print(f"{PREFIX + SUFFIX} tokens, chunks of {CHUNK}, {WAITING} waiting; medians [quartiles], µs")
    for name, value in found["spread"].items():
        print(f"  {name:<24}{value['median']:>12.2f}  [{value['low']:.2f}, {value['high']:.2f}]")
    print("a decision, all waiting requests related; mean, µs")
    for row in found["scaling"]:
        print(f"  {row['waiting']:>7} waiting{row['decision_us']:>17.2f}")


if __name__ == "__main__":
    main("benchmarks.cht", __doc__.splitlines()[0], run, show)
