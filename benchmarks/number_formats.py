"""Which numbers this CPU multiplies fastest: ``python -m benchmarks.number_formats [--json]``.

A linear layer as models have them, in bfloat16 and float32, for the rows of a small decode step, a full one and a prefill. ``lab.machine.cpu_dtype``
rests on it: PyTorch has no fast product in bfloat16 for processors without AVX-512.
"""

import torch

from benchmarks.timing import main, spread, timed
from lab import machine

ROWS = (1, 32, 256)
INPUTS, OUTPUTS = 2048, 5632
FORMATS = ("float32", "bfloat16")


def run(repeats: int) -> dict:
    """Rows → format → GFLOP/s with quartiles, formats interleaved; and bfloat16's rate over float32's, which is below 1 where float32 is faster."""
    found = {"device": machine.device("cpu"), "torch": torch.__version__, "cpu_dtype": machine.cpu_dtype(), "gflop_s": {}}
    for rows in ROWS:
        layers = {}
        for name in FORMATS:
            x, weights = (torch.randn(size, INPUTS).to(getattr(torch, name)) for size in (rows, OUTPUTS))
            layers[name] = lambda x=x, weights=weights: torch.nn.functional.linear(x, weights)
        rates: dict[str, list[float]] = {name: [] for name in FORMATS}
        for repeat in range(-2, repeats):
            for name, call in layers.items():
                taken = timed(call)
                if repeat >= 0:
                    rates[name].append(2 * rows * INPUTS * OUTPUTS / taken / 1e3)
        told = {name: spread(of, 1) for name, of in rates.items()}
        found["gflop_s"][f"{rows} rows"] = told | {
            "bfloat16_over_float32": round(told["bfloat16"]["median"] / told["float32"]["median"], 2)
        }
    return found


def show(found: dict) -> None:
    print(f"{found['device']}, torch {found['torch']}: models compute in {found['cpu_dtype']}")
    for rows, told in found["gflop_s"].items():
        rates = ", ".join(f"{name} {told[name]['median']:.1f} GFLOP/s" for name in FORMATS)
        print(f"{rows:>9}: {rates} ({told['bfloat16_over_float32']:.2f} ×)")


if __name__ == "__main__":
    main("benchmarks.number_formats", __doc__.splitlines()[0], run, show, repeats={"type": int, "default": 9, "help": "of each product"})
