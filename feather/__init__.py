"""Feather: a prefix-aware scheduler for LLM inference.

Layers, each importing only from those before it:

* the core (``hashing``, ``cht``, ``agent``, ``former``, ``admission``, ``memory``, ``options``) knows neither an engine nor torch;
* ``lab.workloads`` says which prompts arrive when: drawn from a seed, or read from a data set or a trace;
* ``feather.vllm`` puts the core behind vLLM's scheduler seam, ``feather.sglang`` behind SGLang's;
* ``lab.model`` models the time of a step (layer of the core), and drives vLLM's scheduler with it (layer of the studies);
* ``lab.studies`` runs workloads on an engine and turns them into tidy rows;
* ``lab.artifact`` runs the notebooks and writes the report.
"""

__version__ = "0.1.0"
