"""Attention that computes shared prefixes once, for vLLM on CPUs, as a plug-in."""


def register() -> None:
    """Put Feather's backend in the place of vLLM's for CPUs. Loaded by vLLM in each of its processes (entry-point group
    ``vllm.general_plugins``); does nothing on other platforms, and changes nothing until the option ``attention`` or ``rows`` is set."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    if hasattr(AttentionBackendEnum, "CPU_ATTN"):
        register_backend(AttentionBackendEnum.CPU_ATTN, "feather.vllm.attention.backend.Backend")
