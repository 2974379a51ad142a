"""What Feather does around SGLang's own methods, whichever way the hooks get there: as a plug-in (``plugin``) or by hand (``patch``).
``feather`` on a scheduler is what stands beside it, None where SGLang's own policy decides."""

from argparse import ArgumentParser
from collections.abc import Callable
from typing import Any

from feather.options import Options
from feather.sglang.supported import POLICY


def init_schedule_policy(original: Callable, scheduler: Any) -> None:
    ours = scheduler.server_args.schedule_policy == POLICY
    if ours:
        scheduler.schedule_policy = "fcfs"  # sets up other things too, and gives the policy to fall back to
    original(scheduler)
    scheduler.feather = None
    if ours:
        from feather.sglang.beside import Beside

        scheduler.feather = Beside(scheduler, Options.from_environment())


def get_next_batch_to_run(original: Callable, scheduler: Any, *args: Any, **kwargs: Any) -> Any:
    if scheduler.feather is None:
        return original(scheduler, *args, **kwargs)
    start = scheduler.feather.now()
    plan = original(scheduler, *args, **kwargs)
    scheduler.feather.formed(getattr(plan, "batch_to_run", plan), start)  # 0.5.9: the batch itself
    return plan


def process_batch_result(original: Callable, scheduler: Any, batch: Any, result: Any) -> None:
    if scheduler.feather is None:
        return original(scheduler, batch, result)
    with scheduler.feather.result_of(batch):
        original(scheduler, batch, result)


AROUND: dict[str, Callable] = {hook.__name__: hook for hook in (init_schedule_policy, get_next_batch_to_run, process_batch_result)}
"""by the method of SGLang's ``Scheduler``"""


def add_choice(result: None, parser: ArgumentParser) -> None:
    """After ``ServerArgs.add_cli_args``: ``--schedule-policy feather`` is one of the choices."""
    action = next(action for action in parser._actions if action.dest == "schedule_policy")
    action.choices = [*(action.choices or ()), POLICY]


def refuse_unsupported(arguments: Any) -> None:
    """Raises ValueError if SGLang's server arguments ask for what Feather cannot do."""
    for name, supported, why in (
        ("tp_size", 1, "every rank schedules for itself and all must decide alike, but Feather's decisions depend on measured time"),
        ("pp_size", 1, "every stage schedules for itself and all must decide alike, but Feather's decisions depend on measured time"),
        ("disaggregation_mode", "null", "prefill and decode instances admit requests past the waiting queue"),
        ("dllm_algorithm", None, "diffusion models have an admission loop of their own"),
        ("enable_pdmux", False, "its event loop is another one"),
    ):  # fmt: skip
        value = getattr(arguments, name)
        if value != supported:
            raise ValueError(f"--schedule-policy {POLICY} does not support {name}={value!r}: {why}; leave it at {supported!r}")
