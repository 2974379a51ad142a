"""A small neural network as a stopping policy: trained elsewhere (``lab.train``), run with numpy alone."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from feather.policies import checkpoint
from feather.policies.base import BatchState, Policy

KIND, VERSION = "feather network", 1
NARROW = 3  # fields of BatchState: b, Δ, w

# Counts to 1 at 1023, the wait at 60 s, the share of the KV cache at 1.
_SCALE = 1 / np.log1p([1023, 1023, 1023, 1023, 1023, 1023, 1023, 60, 1])


def features(state: BatchState, wide: bool) -> np.ndarray:
    """What the network sees: (b, Δ, w), or all fields of the state, on a logarithmic scale of about 0 … 1. Float64."""
    count = len(state) if wide else NARROW
    return np.log1p(state[:count]) * _SCALE[:count]


class Network(Policy):
    """Adds where the last layer's one output is at least 0. ReLU between the layers.

    It learns nothing while serving, and like those who trained it holds a STOP until the batch is gone.

    Args:
        layers: (weights, shape outputs × inputs; biases) of each layer; the last has one output.
        wide: whether it sees all of the state or (b, Δ, w).
        trained: on what, by what, with which result; kept in its file.

    Raises ValueError for layers that do not fit each other or hold numbers that are not finite.
    """

    commits = True

    def __init__(self, layers: Sequence[tuple], wide: bool, trained: dict | None = None):
        self.wide, self.trained = wide, trained or {}
        self.layers = [(np.asarray(weights, float), np.asarray(biases, float)) for weights, biases in layers]
        inputs = len(BatchState._fields) if wide else NARROW
        for weights, biases in self.layers:
            if weights.ndim != 2 or weights.shape[1] != inputs or biases.shape != weights.shape[:1]:
                raise ValueError(f"a layer with weights of shape {weights.shape} and biases of {biases.shape} cannot take {inputs} inputs")
            if not (np.isfinite(weights).all() and np.isfinite(biases).all()):
                raise ValueError("its weights must be finite")
            inputs = len(biases)
        if inputs != 1:
            raise ValueError(f"its last layer must have one output, not {inputs}")
        (self._last,), (self._threshold,) = self.layers[-1][0], -self.layers[-1][1]

    @classmethod
    def read(cls, path: Path) -> "Network":
        """Raises FileNotFoundError, or ValueError for a file that is damaged or of another kind or version."""
        learned = checkpoint.read(path, KIND, VERSION)
        try:
            return cls(learned["layers"], bool(learned["wide"]), learned["trained"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not what lab.train of version {VERSION} writes ({error})") from None

    def save(self, path: Path) -> None:
        layers = [[weights.tolist(), biases.tolist()] for weights, biases in self.layers]
        checkpoint.write(path, KIND, VERSION, {"wide": self.wide, "layers": layers, "trained": self.trained})

    def decide(self, state: BatchState) -> bool:
        if not state.tip_loss:
            return True
        seen = features(state, self.wide)
        for weights, biases in self.layers[:-1]:
            seen = weights.dot(seen)
            seen += biases
            np.maximum(seen, 0, seen)
        return bool(self._last.dot(seen) >= self._threshold)
