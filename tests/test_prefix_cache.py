"""What a rehearsal takes the engine's prefix cache to hold, against a queue of single blocks as vLLM keeps it."""

from hypothesis import given
from hypothesis import strategies as st

from feather.prefix_cache import PrefixCache

CAPACITY, LENGTH = 12, 4  # chunks: of the cache, of a prefix


class Blocks:
    """A queue of free blocks: new ones are taken from its head, and those of whoever has gone are put to its end, the last of a prefix first."""

    def __init__(self) -> None:
        self.queue: list[int | None] = [None] * CAPACITY  # the prefix that each holds

    def begin(self, prefix: int) -> int:
        held = self.queue.count(prefix)
        self.queue = [each for each in self.queue if each != prefix][LENGTH - held :]
        return LENGTH - held

    def leave(self, prefix: int | None, blocks: int = LENGTH) -> None:
        self.queue += [prefix] * blocks


@given(st.lists(st.integers(0, 7)))
def test_it_loses_what_a_queue_of_blocks_loses(moves):
    """0 to 5: a prefix begins, or its request leaves; 6: somebody takes a block of his own; 7: leaves it."""
    cache, blocks, runs, own = PrefixCache(CAPACITY), Blocks(), set(), 0
    for move in moves:
        if move in runs:
            runs.remove(move)
            cache.leave(move, LENGTH)
            blocks.leave(move)
        elif move < 6 and len(runs) * LENGTH + own + LENGTH <= CAPACITY:
            runs.add(move)
            assert cache.begin(move, LENGTH) == blocks.begin(move)
        elif move == 6 and cache.free >= 1:
            own += 1
            cache.take(1)
            del blocks.queue[0]
        elif move == 7 and own:
            own -= 1
            cache.drop(1)
            blocks.leave(None, 1)
        assert cache.free == len(blocks.queue) == CAPACITY - len(runs) * LENGTH - own


def test_without_a_limit_what_has_been_computed_once_stays():
    cache = PrefixCache(float("inf"))
    assert cache.begin(0, 5) == 5
    for prefix in range(1, 100):
        cache.begin(prefix, 5)
    cache.leave(0, 5)
    cache.drop(1)
    assert cache.begin(0, 5) == 0
