"""What an engine's prefix cache still holds of a prefix when its next request comes. What was left longest ago goes first, as in vLLM and SGLang."""

_UNUSED = -1


class PrefixCache:
    """Chunks of a KV cache: those in use, and those left by requests that have gone, which stay until somebody needs the room.

    Args:
        capacity: chunks.
    """

    def __init__(self, capacity: float):
        self.free = capacity
        """chunks that nobody uses, whatever they hold"""
        # What they hold, in the order in which it was left: chunks by prefix, and by numbers below 0 what nobody comes back to.
        self._nobodys = _UNUSED
        self._left: dict[int, float] = {self._nobodys: capacity}

    @property
    def evicts(self) -> bool:
        """Whether anything that somebody had left has been given to somebody else."""
        return _UNUSED not in self._left

    def take(self, chunks: float) -> None:
        """Somebody needs new chunks."""
        self.free -= chunks
        while chunks > 0 and self._left:
            oldest = next(iter(self._left))
            held = self._left[oldest]
            if held > chunks:
                self._left[oldest] = held - chunks
                return
            del self._left[oldest]
            chunks -= held

    def begin(self, prefix: int, chunks: float) -> float:
        """The first request of a prefix that nobody runs with. Returns how many of its chunks have to be computed again."""
        held = self._left.pop(prefix, 0.0)
        self.free -= held
        self.take(chunks - held)
        return chunks - held

    def leave(self, prefix: int, chunks: float) -> None:
        """A prefix's last request has gone."""
        self.free += chunks
        self._left[prefix] = chunks

    def drop(self, chunks: float) -> None:
        """Chunks are left that nobody comes back to."""
        self.free += chunks
        if next(reversed(self._left), 0) != self._nobodys:
            self._nobodys -= 1
        self._left[self._nobodys] = self._left.get(self._nobodys, 0.0) + chunks
