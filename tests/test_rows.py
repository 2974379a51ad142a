"""The order of a step's rows, which is not the order of admission: what vLLM's runner for GPUs makes of it, and who is preempted."""

import inspect

import pytest
from modelless import Driver
from test_contract import fill

from feather.admission import Admission
from feather.former import BatchFormer
from feather.policies import NeverStop
from feather.request import Request
from feather.vllm import FeatherScheduler


def scheduled(tmp_path, rows: str):
    from modelless import make_scheduler

    options = {"policy": "never_stop", "chunk_size": 32, "order": "arrival", "rows": rows}
    scheduler = make_scheduler(FeatherScheduler, tmp_path, max_num_seqs=9, max_tokens=2000, feather=options)
    driver = Driver(scheduler)
    driver.add(*fill(scheduler, groups=3, each=3))
    first, second = driver.step(), driver.step()
    return scheduler, first, second


def changes(ids) -> int:
    """How often the group changes from one row to the next."""
    groups = [id_.split(".")[0] for id_ in ids]
    return sum(one != other for one, other in zip(groups, groups[1:]))


def test_rows_of_one_prefix_are_listed_side_by_side(tmp_path):
    scheduler, _, second = scheduled(tmp_path / "sorted", "prefix")
    plain, _, unsorted = scheduled(tmp_path / "plain", "engine")
    assert changes(second.num_scheduled_tokens) == 2 and changes(unsorted.num_scheduled_tokens) == 8
    assert second.num_scheduled_tokens == unsorted.num_scheduled_tokens, "the same rows and tokens"
    assert [request.request_id for request in scheduler.running] == [request.request_id for request in plain.running], (
        "who is preempted first goes by the running list, which keeps the order of admission"
    )


def test_vllms_runner_for_gpus_keeps_that_order_within_a_kind(tmp_path):
    runner = pytest.importorskip("vllm.v1.worker.gpu.model_runner")
    sort = getattr(runner, "sort_batch_req_ids", None)
    if sort is None:
        source = inspect.getsource(runner)
        assert "sorted(num_tokens_per_req" in source or "sorted(scheduler_output.num_scheduled_tokens" in source
        pytest.skip("this vLLM sorts in the midst of a method: nothing to call")
    _, _, second = scheduled(tmp_path, "prefix")
    tokens = dict(second.num_scheduled_tokens)
    assert sort(tokens, {}, 1) == list(tokens), "decoding rows stay as they are listed"
    prefill = {id_: 7 if place % 4 == 0 else 1 for place, id_ in enumerate(tokens)}
    kinds = sort(prefill, {}, 1)
    assert [prefill[id_] for id_ in kinds] == sorted(prefill.values())
    for kind in (1, 7):
        assert [id_ for id_ in kinds if prefill[id_] == kind] == [id_ for id_ in tokens if prefill[id_] == kind]


def test_deeper_levels_stand_together_too_and_who_is_unknown_keeps_its_place():
    former = BatchFormer(NeverStop(), max_batch=10)
    admission = Admission(former)
    paths = {"a1": (1, 2, 3), "b": (1, 5), "a2": (1, 2, 4), "c": (9,), "a3": (1, 2, 3), "d": ()}
    for id_, path in paths.items():
        admission.insert(Request(id_, path))
        admission.add_to_batch(id_)
    order = admission.by_prefix(["c", "a1", "b", "d", "a2", "a3", "unknown"])
    places = {id_: order.index(id_) for id_ in order}
    assert sorted(order) == sorted([*paths, "unknown"])
    assert abs(places["a1"] - places["a3"]) == 1, "of one whole prefix"
    assert max(places[id_] for id_ in ("a1", "a2", "a3")) - min(places[id_] for id_ in ("a1", "a2", "a3")) == 2
    assert max(places[id_] for id_ in ("a1", "a2", "a3", "b")) - min(places[id_] for id_ in ("a1", "a2", "a3", "b")) == 3
    admission.finish("a1")
    assert admission.by_prefix(["a1", "c"])[0] == "a1", "gone, so of no prefix"
