"""Which stopping policy: ``python -m benchmarks.policies --profile smoke|full [--part engine|model|both] [--json]``.

Workloads sampled from a grid (prefix groups, prefix and decode lengths, a full queue or open loop), on the real CPU engine
under every policy, interleaved, with order of arrival run twice for the noise floor; and those of the same cells where there
is something to decide on the modelled GPU, with the cascade kernel and without, for as long as the learning takes.

``noise_floor`` is the worst cell's median ratio of FCFS against FCFS; ``min_ratio_fcfs`` the worst cell's ratio of the default
policy to FCFS by its upper 95 % bound; the oracle is the better of stopping and not, in each cell.
"""

from benchmarks.timing import main
from lab.studies import policies
from lab.studies.policies import ON_ENGINE, ON_MODEL, Runner, label, run_cells, sample

CELLS, REPEATS = {"smoke": 6, "full": 24}, {"smoke": 3, "full": 5}
MODEL_CELLS = {"smoke": 4, "full": 12}


def on_engine(profile: str) -> dict:
    from lab.engines import make_engine

    runner = Runner(make_engine("cpu", max_batch=32), tokens=2560, requests=(40, 192))
    rows = list(run_cells(runner, sample(CELLS[profile]), ON_ENGINE, REPEATS[profile], "policies, real engine"))
    return {"cells": rows, **policies.summary(rows)}


def on_model(profile: str) -> dict:
    from lab.engines.modelled import ModelledEngine

    cells = [policies.Cell(groups, prefix, decode, None) for prefix in (8000, 4000) for groups in (4, 8, 2) for decode in (32, (8, 128))]
    found = {}
    for kernel in ("cascade", "paged"):
        runner = Runner(ModelledEngine(max_batch=256, kernel=kernel), tokens=130_000, requests=(2000, 100_000))
        rows = list(run_cells(runner, cells[: MODEL_CELLS[profile]], ON_MODEL, 1, f"policies, modelled {kernel} kernel"))
        found[kernel] = {"cells": rows, **policies.modelled_summary(rows)}
    return found


def run(profile: str, part: str) -> dict:
    found = on_engine(profile) if part != "model" else {}
    if part != "engine":
        modelled = on_model(profile)
        found |= {
            "modelled": modelled,
            "stop_rate_cascade": modelled["cascade"]["stop_rate"],
            "cascade_ratio_never_stop": modelled["cascade"]["ratio_never_stop"],
        }
    return found


def show(found: dict) -> None:
    for row in found.get("cells", ()):
        ratios = "  ".join(f"{name} {row[name]['over_fcfs']['median']:.2f}" for name in ON_ENGINE if name in row and name != "FCFS")
        print(f"{label(row):<44}{ratios}")
    for kernel, part in found.get("modelled", {}).items():
        for row in part["cells"]:
            print(f"{kernel:<8}{label(row):<36} over never stop {row['over_never_stop']['median']:.2f}, over the better oracle "
                  f"({row['better_oracle']}) {row['over_oracle']['median']:.2f}, stopped {row['Feather']['stopped']:.0%} of the steps")  # fmt: skip
    for name, value in found.items():
        if isinstance(value, float):
            print(f"{name:<26}{value}")
    for name, value in found.get("per_policy", {}).items():
        print(f"{name:<26}{value}")


if __name__ == "__main__":
    main(
        "benchmarks.policies", __doc__.splitlines()[0], run, show,
        profile={"choices": ["smoke", "full"], "default": "smoke", "help": "smoke: at most 20 minutes on 2 cores; full: at most 2 hours"},
        part={"choices": ["engine", "model", "both"], "default": "both", "help": "the real engine, the modelled GPU, or both"},
    )  # fmt: skip
