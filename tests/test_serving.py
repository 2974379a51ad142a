"""The benchmark's server and clients, small: nobody is lost, and Feather's metrics are on vLLM's own endpoint."""

import json

import pytest

from benchmarks.openai_server import Server
from benchmarks.serving import Clients
from lab.workloads import make_prefixes

pytestmark = pytest.mark.engine


def test_clients_that_stay_leave_and_err(tmp_path):
    options = {"policy": "lab.policies.Threshold", "chunk_size": 32, "min_batch": 1, "max_loss": 0, "max_loss_under_load": 0}
    arguments = ("--scheduler-cls", "feather.vllm.FeatherScheduler", "--additional-config", json.dumps({"feather": options}))
    with Server(tmp_path, "feather", arguments=arguments) as server:
        mix = {"serve": 0.7, "leave": 0.1, "nonsense": 0.1, "too long": 0.1}
        phase = Clients(server, make_prefixes(4, 300)).run(80, seed=0, per_second=60, mix=mix)
        metrics = server.metrics()
        assert server.resident_mb()["engine"] > 100
    assert phase.fates["lost"] == phase.too_many == 0 and phase.fates.total() == 80
    assert phase.fates["served"] > 40 and phase.fates["refused"] > 5
    assert metrics["feather_decisions_total"] >= metrics["feather_decision_seconds_count"] > 0
    assert metrics["feather_stops_total"] > 0 == metrics["feather_fallbacks_total"]
