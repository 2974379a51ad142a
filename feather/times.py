"""How long an engine's steps take, one after the other."""


class StepTimes:
    """While anybody is left to serve, a step's time runs from the result of the step before: what the engine does between two steps delays
    tokens as well, and many small steps have much of it. After an idle moment it runs from the step's own start."""

    def __init__(self) -> None:
        self._last_result, self._busy = float("-inf"), False  # whether anybody was left to serve then

    def result(self, now: float, start: float, busy: bool) -> float:
        """Seconds of a step that began at ``start`` and whose result has come. ``busy``: whether anybody is left to serve."""
        seconds = now - (self._last_result if self._busy else max(start, self._last_result))
        self._last_result, self._busy = now, busy
        return seconds
