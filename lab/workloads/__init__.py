"""Workloads: which prompts arrive when, and what they share. Knows neither an engine nor torch.

Drawn from a seed (``synthetic``, ``loops``, ``arrivals``) or read from data sets of documents (``documents``) and from traces
(``traces``); ``python -m lab.workloads`` fetches those (``sources``, ``fetch``).
"""

from lab.workloads.loops import Loop
from lab.workloads.synthetic import even_sizes, grouped, make_prefix_tree, make_prefixes, unshared
from lab.workloads.workload import VOCABULARY, Prompt, Workload

__all__ = ["VOCABULARY", "Loop", "Prompt", "Workload", "even_sizes", "grouped", "make_prefix_tree", "make_prefixes", "unshared"]
