"""Feather behind SGLang's scheduler: ``install()``, then ``--schedule-policy feather``."""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

POLICY = "feather"
VERSION = "0.5.9"


def check_version() -> None:
    """Raises ImportError with the mend where SGLang is missing or is another release than the one that Feather has been
    tested with: the seam is SGLang's inside, which changes from release to release."""
    try:
        found = version("sglang")
    except PackageNotFoundError:
        found = None
    if found != VERSION:
        raise ImportError(
            f"Feather needs SGLang {VERSION} and {f'this is SGLang {found}' if found else 'none is installed'}: "
            f"pip install 'sglang=={VERSION}' (to read its scheduling code without a GPU: "
            "python -m pip install --no-deps -r requirements/peers.txt)"
        )


def missing() -> str | None:
    """Why nothing of SGLang's can be run here, with the mend; None where it can."""
    try:
        check_version()
    except ImportError as error:
        return str(error)
    return None


def install(options: Mapping[str, Any] | None = None) -> None:
    """Make ``--schedule-policy feather`` valid in this process. ``options``: of ``feather.options.Options``.

    SGLang's scheduler runs in a process of its own, started by spawning, which imports the launching script again: so call
    this at the script's top level, outside its ``__main__`` guard (as ``feather.sglang.serve`` does).

    Raises ImportError for another SGLang, ValueError for a wrong option. Installing again replaces the options.
    """
    check_version()
    from feather.sglang.scheduler import put_in_place

    put_in_place(options or {})
