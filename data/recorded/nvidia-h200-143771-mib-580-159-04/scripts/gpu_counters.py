"""Nsight Compute's counters of single attention calls, apart from their timings: ``python gpu_counters.py --heads llama-3-8b``, one JSON list."""

import argparse
import json
from types import SimpleNamespace

from benchmarks.decode_attention import count
from feather.studies.decode_attention import SIZES

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--heads", default="llama-3-8b")
heads = parser.parse_args().heads
print(json.dumps(count(SimpleNamespace(backend="gpu", heads=heads, sizes=SIZES["gpu"][heads]))))
