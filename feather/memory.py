"""Keeps what the policy has learned in a file, from one start of the server to the next."""

import time
from logging import Logger
from pathlib import Path

from feather.policies import Policy

_EVERY = 60.0  # seconds between two saves


class Memory:
    """Saves and restores the policy. Anything that goes wrong with the file is a warning, and serving continues.

    Args:
        path: of the file; "" for none.
        rank: of the data-parallel engine; each engine learns separately and has a file of its own.
        logger: the engine's.
    """

    def __init__(self, path: str, rank: int, logger: Logger):
        self._path = Path(f"{path}.{rank}" if rank else path).expanduser() if path else None
        self._logger = logger
        self._saved = time.monotonic()

    def recall(self, policy: Policy) -> None:
        """Restore what was learned before, if anything was."""
        if self._path is None or policy.kind is None:
            return
        try:
            policy.load(self._path)
        except FileNotFoundError:
            self._logger.info("Feather starts without experience and will keep it in %s", self._path)
        except (ValueError, OSError) as error:
            self._logger.warning("Feather starts without experience: %s", error)

    def keep(self, policy: Policy, now: bool = False) -> None:
        """Save, at most once a minute unless ``now``."""
        if self._path is None or policy.kind is None or not (now or time.monotonic() - self._saved > _EVERY):
            return
        self._saved = time.monotonic()
        try:
            policy.save(self._path)
        except (ValueError, OSError) as error:
            self._logger.warning("Feather could not keep what it has learned in %s: %s", self._path, error)
