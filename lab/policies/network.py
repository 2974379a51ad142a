"""A small neural network as a stopping policy: trained beforehand (``lab.train``), run with numpy alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import numpy as np

from feather.policies.base import CommonOptions
from feather.policies.checkpoint import read_checkpoint, write_checkpoint
from feather.settings import setting
from lab.policies.stopping import BatchState, Stopping

KIND, VERSION = "feather network", 1
NARROW = 3  # fields of BatchState: b, Δ, w

# Counts become 1 at 1023, the wait at 60 s, the share of the KV cache at 1.
_SCALE = 1 / np.log1p([1023, 1023, 1023, 1023, 1023, 1023, 1023, 60, 1])
_TRAINED = files("lab.policies") / "trained"


def trained_names() -> list[str]:
    """Names of the networks that are kept here."""
    return sorted(file.name.removesuffix(".json") for file in _TRAINED.iterdir() if file.name.endswith(".json"))


def find_network(name_or_path: str) -> Path | Traversable | None:
    """The file of a network that is kept here, by its name, or of any other, by its path; None if there is none."""
    if name_or_path in trained_names():
        return _TRAINED / f"{name_or_path}.json"
    path = Path(name_or_path).expanduser()
    return path if path.is_file() else None


def features(state: BatchState, wide: bool) -> np.ndarray:
    """The network's input, shape (3,) or (9,), float64: (b, Δ, w), or all fields of the state, on a logarithmic scale of about
    0 … 1."""
    count = len(state) if wide else NARROW
    return np.log1p(state[:count]) * _SCALE[:count]


@dataclass(frozen=True)
class NetworkSettings:
    network: str = setting("", "file that ``lab.train`` has written, or the name of one that is kept with it")


class Network(Stopping):
    """A small neural network decides, trained beforehand (``lab.train``) for one device and attention kernel.

    It adds the candidate if the one output of the last layer is at least 0. ReLU between the layers. It learns nothing while
    serving. Like the policies that trained it, it holds a STOP until the batch is gone.

    Args:
        layers: (weights, shape outputs × inputs; biases, shape outputs) of each layer; the last has one output.
        wide: whether it sees the whole state or only (b, Δ, w).
        trained: how it was trained and with which result; kept in its file.

    Raises ValueError for layers that do not fit each other or hold numbers that are not finite.
    """

    settings = NetworkSettings
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
    def check(cls, settings: NetworkSettings) -> None:
        if find_network(settings.network) is None:
            raise ValueError(
                f"option network={settings.network!r} must name a file that python -m lab.train has written, or one of the networks "
                f"that are kept here: {', '.join(trained_names())}"
            )

    @classmethod
    def make(cls, settings: NetworkSettings, common: CommonOptions) -> "Network":
        cls.check(settings)
        return cls.read(settings.network)

    @classmethod
    def read(cls, name_or_path: str | Path) -> "Network":
        """Raises FileNotFoundError, or ValueError for a file that is damaged or of another kind or version."""
        file = find_network(str(name_or_path)) or Path(name_or_path)
        learned = read_checkpoint(file, KIND, VERSION)
        try:
            return cls(learned["layers"], bool(learned["wide"]), learned["trained"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} is not what lab.train of version {VERSION} writes ({error})") from None

    def save(self, path: Path) -> None:
        layers = [[weights.tolist(), biases.tolist()] for weights, biases in self.layers]
        write_checkpoint(path, KIND, VERSION, {"wide": self.wide, "layers": layers, "trained": self.trained})

    def decide(self, state: BatchState) -> bool:
        if not state.tip_loss:
            return True
        seen = features(state, self.wide)
        for weights, biases in self.layers[:-1]:
            seen = weights.dot(seen)
            seen += biases
            np.maximum(seen, 0, seen)
        return bool(self._last.dot(seen) >= self._threshold)
