"""How times and paths are told on the terminal."""

import os
from pathlib import Path


def clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d} min"


def shown(path: Path) -> str:
    """A path as a reader would type it from where they are."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
