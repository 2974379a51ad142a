"""Feather behind vLLM's scheduler seam: ``--scheduler-cls feather.vllm.FeatherScheduler``."""


def __getattr__(name: str):
    # On first use, so that what needs no engine can import its neighbours without loading vLLM and torch.
    if name == "FeatherScheduler":
        from vllm import __version__

        from feather.vllm.versions import check

        check(__version__)
        from feather.vllm.scheduler import FeatherScheduler

        return FeatherScheduler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
