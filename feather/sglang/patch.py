"""Feather in SGLang 0.5.9, which has no plug-ins: the same hooks, put around its methods by hand."""

import functools
from collections.abc import Callable
from typing import Any

from sglang.srt.managers import scheduler as scheduler_module
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.server_args import ServerArgs

from feather.sglang.adder import FeatherAdder
from feather.sglang.hooks import AROUND, add_choice, refuse_unsupported
from feather.sglang.supported import POLICY


def put_in_place() -> None:
    """Once; see ``feather.sglang.install``."""
    if scheduler_module.PrefillAdder is FeatherAdder:
        return
    scheduler_module.PrefillAdder = FeatherAdder
    for name, hook in AROUND.items():
        setattr(Scheduler, name, _around(getattr(Scheduler, name), hook))
    arguments: Any = ServerArgs
    add_cli_args = arguments.add_cli_args
    arguments.add_cli_args = staticmethod(lambda parser: add_choice(add_cli_args(parser), parser))
    arguments.check_server_args = _around(arguments.check_server_args, _check_server_args)


def _around(original: Callable, hook: Callable) -> Callable:
    return functools.wraps(original)(lambda *args, **kwargs: hook(original, *args, **kwargs))


def _check_server_args(original: Callable, arguments: Any) -> None:
    if arguments.schedule_policy != POLICY:
        return original(arguments)
    refuse_unsupported(arguments)
    arguments.schedule_policy = "fcfs"  # SGLang checks priorities here; in that respect Feather is like its default
    try:
        original(arguments)
    finally:
        arguments.schedule_policy = POLICY
