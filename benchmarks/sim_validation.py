"""Holds the model against measured steps that it was not fitted to, and against every published number.

``python -m benchmarks.sim_validation [--json]``: ``mape`` is the mean absolute error in percent over the ``points`` held out.
"""

import pandas as pd

from benchmarks.timing import main
from lab.model import calibration
from lab.studies.modelled import published, residuals


def run() -> dict:
    rows = pd.read_csv(calibration.STEPS)
    device = calibration.this_cpu(rows)
    table = calibration.predicted(device, rows)
    held_out, fitted = table[table["held_out"]], table[~table["held_out"]]
    worst = held_out.reindex(held_out["error"].abs().sort_values(ascending=False).index).head(5)
    return {
        "mape": round(100 * float(held_out["error"].abs().mean()), 2),
        "points": len(held_out),
        "mape_fitted": round(100 * float(fitted["error"].abs().mean()), 2),
        "points_fitted": len(fitted),
        "device": device.name,
        "constants": {
            name: float(f"{getattr(device, name):.4g}")
            for name in (
                "step_seconds",
                "row_seconds",
                "cache_rate",
                "memory_rate",
                "gemm_share",
                "attention_share",
                "heads_at_once",
                "query_tile",
                "cache_bytes",
            )
        },
        "worst": worst.round(3).to_dict("records"),
        "published": residuals(published()).round(3).to_dict("records"),
    }


def show(found: dict) -> None:
    print(
        f"held out: mean absolute error {found['mape']} % over {found['points']} points "
        f"(fitted: {found['mape_fitted']} % over {found['points_fitted']}); {found['device']}"
    )
    print(pd.DataFrame(found["worst"]).to_string(index=False))
    print(pd.DataFrame(found["published"]).to_string(index=False))


if __name__ == "__main__":
    main("benchmarks.sim_validation", __doc__.splitlines()[0], run, show)
