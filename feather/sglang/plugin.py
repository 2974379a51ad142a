"""Feather in SGLang 0.5.23: a plug-in of its entry-point group ``sglang.srt.plugins``.

SGLang loads it in each of its processes. It hooks into five places and does nothing in any of them unless the server was started
with ``--schedule-policy feather``. SGLang's arguments are sealed, and ``server_args`` keeps what the user wrote; the policy that the rest of SGLang
is to reckon with is declared as a resolved value: first come, first served, which Feather falls back to.
"""

import logging
from collections.abc import Callable
from typing import Any

from feather.options import Options
from feather.sglang.hooks import AROUND, add_choice, refuse_unsupported
from feather.sglang.supported import POLICY, check_version

logger = logging.getLogger(__name__)

_SCHEDULER = "sglang.srt.managers.scheduler.Scheduler."


def register() -> None:
    """Called by SGLang, which applies the hooks afterwards."""
    try:
        check_version()
    except ImportError as error:
        logger.warning("--schedule-policy %s is not to be had: %s", POLICY, error)
        return
    from sglang.srt.arg_groups.resolution_hooks import register_resolution_hook
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    register_resolution_hook("handle_other_validations")(_resolve)
    HookRegistry.register("sglang.srt.server_args.ServerArgs.add_cli_args", add_choice, HookType.AFTER)
    for method, hook in {**AROUND, "get_prefill_adder_class": _get_prefill_adder_class}.items():
        HookRegistry.register(_SCHEDULER + method, hook, HookType.AROUND)


def load() -> None:
    """The same in a program that does not go through SGLang's own start, or has Feather on its path without the entry point."""
    from sglang.srt.plugins import load_plugins
    from sglang.srt.plugins.hook_registry import HookRegistry

    load_plugins()
    if _SCHEDULER + "init_schedule_policy" not in HookRegistry._hooks:
        register()
        HookRegistry.apply_hooks()


def _resolve(server_args: Any, previous: Callable[[Any], None]) -> None:
    previous(server_args)
    if server_args.schedule_policy == POLICY:
        from sglang.srt.arg_groups.overrides import declare_resolution, resolving_view

        refuse_unsupported(resolving_view(server_args))
        Options.from_environment()  # a wrong one ends the start-up here, and not in another process
        declare_resolution(server_args, POLICY, schedule_policy="fcfs")


def _get_prefill_adder_class(original: Callable, scheduler: Any) -> type:
    if scheduler.feather is None:
        return original(scheduler)
    from feather.sglang.adder import FeatherAdder

    return FeatherAdder
