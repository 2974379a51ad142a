"""Feather as SGLang's schedule policy: ``install()``, then ``--schedule-policy feather``."""

from collections.abc import Mapping
from typing import Any

from feather.sglang.supported import POLICY, VERSION, check_version, missing

__all__ = ["POLICY", "VERSION", "check_version", "install", "missing"]


def install(options: Mapping[str, Any] | None = None) -> None:
    """Make ``--schedule-policy feather`` valid in this process. ``options``: see ``feather.options.Options``.

    SGLang's scheduler runs in a spawned process of its own, which imports the launching script again. So call this at the
    script's top level, outside its ``__main__`` guard (as ``feather.sglang.serve`` does).

    Raises ImportError for another SGLang, ValueError for a wrong option. Installing again replaces the options.
    """
    check_version()
    from feather.sglang.batching import put_in_place

    put_in_place(options or {})
