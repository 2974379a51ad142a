"""Feather as vLLM's scheduler: ``--scheduler-cls feather.vllm.FeatherScheduler``."""


def __getattr__(name: str):
    # Imported on first use, so that modules beside it can be imported without vLLM and torch.
    if name == "FeatherScheduler":
        from vllm import __version__

        from feather.vllm.versions import check

        check(__version__)
        from feather.vllm.scheduler import FeatherScheduler

        return FeatherScheduler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
