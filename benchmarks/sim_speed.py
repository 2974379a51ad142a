"""How fast the modelled device is simulated: ``python -m benchmarks.sim_speed [--json]``.

``steps_per_s_at_500``: engine steps per second of real time while 500 requests run, vLLM's scheduler included;
``requests_per_s``: requests of 10 000 prompt tokens per second of real time, from arrival to the last of 100 tokens;
``step_model_us_at_500``: the step model alone.
"""

from benchmarks.timing import main, spread, timed
from lab.engines.arms import ARMS
from lab.engines.modelled import ModelledEngine
from lab.workloads import even_sizes, grouped, make_prefixes

REPEATS = 5


def run() -> dict:
    engine, prefixes = ModelledEngine(), make_prefixes(5, 10_000)
    engine.warm(prefixes)
    rates, requests, model = [], [], []
    for repeat in range(REPEATS):
        short, long = (grouped(prefixes, even_sizes(500, 5), repeat, decode_tokens=tokens) for tokens in (2, 102))
        few, many = (timed(lambda workload=workload: engine.run(workload, ARMS["FCFS"])) / 1e6 for workload in (short, long))
        rates.append(100 / (many - few))  # what comes before and after the steady 100 steps is in both
        requests.append(500 / many)
        batch = engine.last_batch
        model.append(timed(lambda batch=batch: [engine.steps.time(batch) for _ in range(100)]) / 100)
    return {"steps_per_s_at_500": spread(rates), "requests_per_s": spread(requests), "step_model_us_at_500": spread(model)}


def show(found: dict) -> None:
    for name, numbers in found.items():
        print(f"{name:<22} {numbers['median']:>9} [{numbers['low']}, {numbers['high']}]")


if __name__ == "__main__":
    main("benchmarks.sim_speed", __doc__.splitlines()[0], run, show)
