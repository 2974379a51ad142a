"""Feather as SGLang's schedule policy: ``--schedule-policy feather``."""

import json
import os
from collections.abc import Mapping
from typing import Any

from feather.options import VARIABLE, Options
from feather.sglang.supported import POLICY, VERSIONS, check_version, missing

__all__ = ["POLICY", "VERSIONS", "check_version", "install", "missing"]


def install(options: Mapping[str, Any] | None = None) -> None:
    """Make ``--schedule-policy feather`` valid in this process, with these options (see ``feather.options.Options``), which go into the
    environment for the processes to come.

    SGLang 0.5.23 loads Feather in each of its processes by itself. SGLang 0.5.9 runs its scheduler in a spawned process, which imports
    the launching script again: call this at that script's top level, outside its ``__main__`` guard (as ``feather.sglang.serve`` does).

    Raises ImportError for another SGLang, ValueError for a wrong option. Installing again replaces the options.
    """
    found = check_version()
    os.environ[VARIABLE] = json.dumps(Options.from_mapping(options or {}).flat())
    if found == VERSIONS[0]:
        from feather.sglang.patch import put_in_place

        put_in_place()
    else:
        from feather.sglang.plugin import load

        load()
