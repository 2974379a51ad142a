"""The modelled device: vLLM's, or SGLang's, own scheduler and KV-cache manager on a virtual clock.

``hardware`` (devices as data) and ``steptime`` (how long one engine step takes) need neither vLLM nor torch; ``engine``
drives the real scheduler with them, through ``vllm`` or ``sglang``.
"""
