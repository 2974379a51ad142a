"""Under ``pytest -n`` each worker has cores of its own: two engines on the same cores would wait for each other in every step."""

import os


def pytest_configure() -> None:
    worker, workers = os.environ.get("PYTEST_XDIST_WORKER"), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if worker:
        cores = sorted(os.sched_getaffinity(0))
        mine = cores[int(worker.removeprefix("gw")) % len(cores) :: workers]
        os.sched_setaffinity(0, mine)
