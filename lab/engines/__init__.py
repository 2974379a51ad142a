"""Engines under study: one surface (``Engine``), a real and a modelled implementation, and ``make_engine``.

``real`` drives vLLM in this process. ``modelled`` drives the scheduling code of vLLM (``modelled_vllm``) or SGLang
(``modelled_sglang``) on a virtual clock. ``arms`` lists what schedules in them.
"""

from lab.engines.engine import Engine, make_engine

__all__ = ["Engine", "make_engine"]
