"""Benchmarks: ``python -m benchmarks.<name> [--json]``. Figures from different runs of a shared machine are not comparable;
what is compared is interleaved in one run."""
