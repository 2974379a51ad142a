"""Workloads: which prompts arrive when, and what they share. Knows neither an engine nor torch."""

from feather.workloads.synthetic import even_sizes, grouped, make_prefixes, unshared
from feather.workloads.workload import VOCABULARY, Prompt, Workload

__all__ = ["VOCABULARY", "Prompt", "Workload", "even_sizes", "grouped", "make_prefixes", "unshared"]
