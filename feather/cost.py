"""What an engine step costs, learned while serving.

A step's time is taken to be a sum of what its batch holds, each at a price that is never negative:

=================  ==========================================================  ==================================================
price of           amount                                                      what it stands for
=================  ==========================================================  ==================================================
step               1                                                           weights, kernel launches
row                rows n                                                      a row's own work
chunk              all chunks A, the sum of the rows' prefix lengths           attention that reads a prefix once for every row
distinct chunk     distinct chunks U                                           attention that reads a shared prefix once
reload             expected loads with the rows in random order, less U        a cache that keeps a prefix from one row to the next
shared tip (save)  (n - 1) × shared tip                                        cascade attention: a gain only where *all* rows share
prefill            1 for a step that computes prompt tokens
prompt token       prompt tokens computed
mixed chunk        all chunks A, in a step that computes prompt tokens         attention that is slower where prompts are computed, as on a GPU
mixed tip (save)   (n - 1) × shared tip, in such a step                        what cascade attention saves of that
decoded token      steps that the rows have run for, together                  their own context, which grows with every step
=================  ==========================================================  ==================================================

The prices are the non-negative least squares of the relative error over the recent past, from an information matrix of the amounts that fades
with serving time (a forgetting factor; Ljung, System Identification, ch. 11.2). A step that is far off counts less (Huber's weights), so
a hiccup of the machine does not move the prices. Where the past does not tell two amounts apart, a weak prior shares the cost between them.
"""

import math
from typing import Any, NamedTuple

import numpy as np

PRICES = (
    "step",
    "row",
    "chunk",
    "distinct_chunk",
    "reload",
    "shared_tip",
    "prefill",
    "prompt_token",
    "mixed_chunk",
    "mixed_tip",
    "decoded_token",
)
_COUNT = len(PRICES)
_EARLY = 30  # observations, within which the prices are found anew after each
_EVERY = 4  # observations between two searches later on
_HUBER = 3.0  # noise levels, beyond which an error counts less
_LEAST_NOISE = 0.02
_PURE = 0.75  # share of the rows' chunks that all share, from which on they have one prefix
_KEPT = 10.0  # steps' worth of the past that is kept when prices have changed
_FADED = 1e-200  # information about an amount, below which it is as if it had never been seen
_BIAS = 12  # steps over which a one-sided error shows that prices have changed


class Load(NamedTuple):
    """What a batch holds. Chunks are those of the tree."""

    rows: float = 0.0
    chunks: float = 0.0
    """A: sum of the rows' prefix lengths"""
    distinct: float = 0.0
    """U: chunks that any row holds, each once"""
    squares: float = 0.0
    """sum over those of (rows that hold it)²"""
    tip: float = 0.0
    """chunks that all rows share"""
    decoded: float = 0.0
    """steps that the rows have run for, together, about as many as they have decoded tokens; the tree does not know them"""

    @property
    def loads(self) -> float:
        """Expected number of times that a chunk has to be loaded if the rows sit in random order and a chunk stays from one row to the next:
        a chunk that k of n rows hold makes k (n - k + 1) / n runs."""
        return ((self.rows + 1) * self.chunks - self.squares) / self.rows if self.rows else 0.0

    @property
    def is_pure(self) -> bool:
        """Whether the rows have one prefix, by their chunks."""
        return self.tip * self.rows >= _PURE * self.chunks

    @property
    def prefixes(self) -> float:
        """How many different prefixes the rows have, by their chunks: 1 where all share, ``rows`` where none does."""
        return self.rows * self.chunks / self.squares if self.squares else 1.0

    def amounts(self, prefill_tokens: int = 0) -> tuple[float, ...]:
        """What each of ``PRICES`` is the price of, in their order; what a shared tip saves counts below 0."""
        mixed, saved = float(prefill_tokens > 0), -max(0.0, self.rows - 1) * self.tip
        return (
            1.0, self.rows, self.chunks, self.distinct, max(0.0, self.loads - self.distinct), saved,
            mixed, float(prefill_tokens), mixed * self.chunks, mixed * saved, self.decoded,
        )  # fmt: skip


def non_negative(matrix: np.ndarray, moment: np.ndarray, guess: np.ndarray) -> np.ndarray:
    """The x ≥ 0 that minimises x·matrix·x / 2 - moment·x, by active sets (Lawson and Hanson 1974, ch. 23). ``matrix``: positive definite.
    ``guess``: which of x are likely to be above 0; if that is right, one solution of linear equations is all it takes."""
    scale = 1 / np.sqrt(matrix.diagonal())
    matrix, moment = matrix * np.outer(scale, scale), moment * scale
    x, free = np.zeros(len(moment)), guess.copy()
    if free.any():
        x[free] = np.linalg.solve(matrix[np.ix_(free, free)], moment[free])
        if (x[free] < 0).any():
            x[:], free[:] = 0.0, False
    for _ in range(3 * len(moment)):
        gain = np.where(free, -np.inf, moment - matrix @ x)
        best = int(gain.argmax())
        if gain[best] <= 1e-9 * abs(moment).max():
            break
        free[best] = True
        while free.any():
            step = np.zeros(len(moment))
            step[free] = np.linalg.solve(matrix[np.ix_(free, free)], moment[free])
            below = free & (step <= 0)
            if not below.any():
                x = step
                break
            x = x + np.min(x[below] / (x[below] - step[below])) * (step - x)
            free &= x > 1e-12
            x[~free] = 0.0
    return x * scale


class StepCost:
    """The learned prices.

    Args:
        horizon: seconds of serving after which an observation has faded to 1/e.
    """

    def __init__(self, horizon: float = 300.0):
        self.horizon = horizon
        self.steps = 0
        """observed"""
        self.noise = 0.2
        """typical relative error of a step's prediction, made before the step was seen"""
        self.changes = 0
        """times that the prices were taken to have changed"""
        self._information = np.zeros((_COUNT, _COUNT))
        self._moment = np.zeros(_COUNT)
        self._weight = 0.0  # steps that they hold
        self._prices = [0.0] * _COUNT
        self._bias = 0.0
        self._since_change = 0

    @property
    def prices(self) -> dict[str, float]:
        """Seconds per unit, by name."""
        return dict(zip(PRICES, self._prices))

    def seconds(self, load: Load, prefill_tokens: float = 0.0) -> float:
        """Predicted time of a step."""
        n, chunks, distinct, squares, tip, decoded = load
        if n <= 0:
            return 0.0
        step, row, chunk, single, reload, save, prefill, token, mixed, mixed_save, own = self._prices
        reloads = ((n + 1) * chunks - squares) / n - distinct
        cost = step + row * n + chunk * chunks + single * distinct
        if reloads > 0:
            cost += reload * reloads
        if prefill_tokens:
            cost += mixed * chunks
            save += mixed_save
        if n > 1:
            cost -= min(save * (n - 1) * tip, 0.95 * cost)
        cost += own * decoded
        if prefill_tokens:
            cost += prefill + token * prefill_tokens
        return cost if cost > 1e-9 else 1e-9

    def observe(self, load: Load, seconds: float, prefill_tokens: int = 0) -> None:
        """A step has run. Results that cannot be (no rows, a time that is not positive and finite) are passed over."""
        if load.rows <= 0 or not (math.isfinite(seconds) and seconds > 0):
            return
        amounts = np.array(load.amounts(prefill_tokens))
        weight = 1.0
        if self.steps >= _EARLY:
            error = float(amounts @ self._prices) / seconds - 1
            clipped, limit = max(-0.5, min(0.5, error)), _HUBER * self.noise
            self._follow(clipped)
            apart = abs(clipped - self._bias)  # an error that all steps have is no hiccup
            weight = min(1.0, limit / apart) if apart else 1.0
            self.noise = max(_LEAST_NOISE, math.sqrt(0.98 * self.noise**2 + 0.02 * min(apart**2, 2 * limit**2)))
        elif self.steps:
            error = max(-0.5, min(0.5, float(amounts @ self._prices) / seconds - 1))
            self.noise = max(_LEAST_NOISE, math.sqrt(0.9 * self.noise**2 + 0.1 * error**2))
        keep = math.exp(-seconds / self.horizon)
        amounts /= seconds  # so that the error is relative
        self._information = keep * self._information + weight * np.outer(amounts, amounts)
        self._moment = keep * self._moment + weight * amounts
        self._weight = keep * self._weight + weight
        self.steps += 1
        if self.steps <= _EARLY or self.steps % _EVERY == 0:
            self._fit()

    def _follow(self, error: float) -> None:
        """Forget faster once errors are one-sided for longer than noise would have them."""
        self._bias += (error - self._bias) / _BIAS
        self._since_change += 1
        if self._since_change > 2 * _BIAS and abs(self._bias) > max(0.1, 1.5 * self.noise):
            keep = min(0.05, _KEPT / max(_KEPT, self._weight))
            self._information *= keep
            self._moment *= keep
            self._weight *= keep
            self._since_change = 0
            self._bias = 0.0
            self.changes += 1

    def _fit(self) -> None:
        seen = self._information.diagonal() > _FADED
        information, moment = np.where(np.outer(seen, seen), self._information, 0.0), np.where(seen, self._moment, 0.0)
        diagonal = information.diagonal()
        # The prior: a price is a few times what would explain a whole step alone.
        ridge = np.where(seen, 1e-4 * diagonal + 1e-3 * diagonal / max(1.0, self.steps), 1.0)
        self._prices = non_negative(information + np.diag(ridge), moment, np.array(self._prices) > 0).tolist()

    def learned(self) -> dict[str, Any]:
        """What JSON can hold; ``restore`` takes it back."""
        return {
            "information": self._information.tolist(), "moment": self._moment.tolist(), "prices": list(self._prices),
            "noise": self.noise, "steps": self.steps, "weight": self._weight,
        }  # fmt: skip

    def restore(self, learned: dict[str, Any]) -> None:
        """Raises ValueError, KeyError or TypeError for what ``learned`` has not made; nothing is changed then."""
        information, moment = np.array(learned["information"], float), np.array(learned["moment"], float)
        prices = [float(price) for price in learned["prices"]]
        if information.shape != (_COUNT, _COUNT) or moment.shape != (_COUNT,) or len(prices) != _COUNT:
            raise ValueError(f"it holds {len(prices)} prices instead of {_COUNT}")
        if not (np.isfinite(information).all() and np.isfinite(moment).all() and min(prices) >= 0 and math.isfinite(sum(prices))):
            raise ValueError("its prices must be finite and not negative")
        noise, steps, weight = float(learned["noise"]), int(learned["steps"]), float(learned.get("weight", learned["steps"]))
        self._information, self._moment, self._prices, self.noise, self.steps, self._weight = (
            information,
            moment,
            prices,
            noise,
            steps,
            weight,
        )
