"""Keeps what the policy has learned in a file, from one start of the server to the next."""

import time
from logging import Logger
from pathlib import Path

from feather.policies import Policy
from feather.policies.checkpoint import is_ours

_BUSY, _IDLE = 3.0, 0.5  # seconds between two saves while requests run, and when the last of them has finished


class Memory:
    """Saves and restores the policy. It saves every few seconds, since a server may be killed at any moment. Anything that goes
    wrong with the file is told once, and serving continues.

    Args:
        path: of the file; "" for none.
        logger: the engine's.
    """

    def __init__(self, path: str, logger: Logger):
        self._path = Path(path) if path else None
        self._logger = logger
        self._saved, self._saved_idle = time.monotonic(), float("-inf")
        self._told = False

    def recall(self, policy: Policy) -> None:
        """Restore what was learned before, if anything was."""
        if self._path is None or policy.kind is None:
            return
        try:
            policy.load(self._path)
        except FileNotFoundError:
            self._logger.info("Feather starts without experience and will keep it in %s", self._path)
        except Exception as error:  # a policy of somebody's own may raise anything
            self._logger.warning("Feather starts without experience: %s", _shown(error))

    def keep(self, policy: Policy, idle: bool = False, now: bool = False) -> None:
        """A step has run: save if it is time, or ``now``. ``idle``: it was the last for the moment."""
        moment, due = time.monotonic(), self._saved_idle + _IDLE if idle else self._saved + _BUSY
        if self._path is None or policy.kind is None or not (now or moment >= due):
            return
        self._saved, self._saved_idle = moment, moment if idle else self._saved_idle
        try:
            if not is_ours(str(self._path)):
                raise OSError("another process keeps its own there: give each server a file")
            policy.save(self._path)
        except Exception as error:
            if not self._told:
                self._logger.warning("Feather could not keep what it has learned in %s: %s", self._path, _shown(error))
            self._told = True


def _shown(error: Exception) -> str:
    return str(error) if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {error}"
