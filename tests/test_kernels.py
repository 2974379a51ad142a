"""Attention kernels: right against float64, compiled for GPUs that are not here, and what is told where something is missing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from lab.kernels.batch import batch_of, divergent, even
from lab.kernels.packing import packs
from lab.model.bandwidth import calibrate, fit, memory_tokens
from lab.model.hardware import H200
from lab.studies import counters

ROOT = Path(__file__).parents[1]


def run(*arguments, **environment):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), **environment}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)


@pytest.mark.parametrize("implementation", ["triton", "cpu"])
def test_every_kernel_agrees_with_float64(implementation):
    if implementation == "triton":
        pytest.importorskip("triton")
    done = run("-m", "lab.kernels.check", implementation, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    assert len(rows) == (2 if implementation == "triton" else 3) * 2 * 9
    assert not [row for row in rows if not row["ok"]]


def test_the_kernels_compile_for_gpus_without_spilling():
    pytest.importorskip("triton")
    done = run("tests/compile_kernels.py", TRITON_INTERPRET="0")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    assert len(rows) == 8
    for row in rows:
        assert row["tensor cores"] and row["pipelined"], row
        assert row["stack"] == 0 and row["shared"] <= 99 * 1024, row


def test_orders_hold_the_same_rows():
    orders = {order: even(32, 8, order, 128, 4).groups for order in ("grouped", "round-robin", "shuffled")}
    assert orders["grouped"] == tuple(row // 4 for row in range(32))
    assert orders["round-robin"] == tuple(row % 8 for row in range(32))
    assert orders["shuffled"] not in (orders["grouped"], orders["round-robin"]) and sorted(orders["shuffled"]) == list(orders["grouped"])
    assert divergent(8, 1, "round-robin", 128, 4).groups.index(1) in (3, 4)


def test_impossible_batches_are_named():
    with pytest.raises(ValueError, match="there are 4 requests"):
        even(4, 5, "grouped", 128, 4)
    with pytest.raises(ValueError, match="8 divergent requests of 8"):
        divergent(8, 8, "grouped", 128, 4)
    with pytest.raises(ValueError, match="order 'sorted' is not one of"):
        even(4, 2, "sorted", 128, 4)
    with pytest.raises(ValueError, match="cascade needs one prefix that all rows share; this batch is on 2"):
        packs(even(4, 2, "grouped", 128, 4), "cascade", 16)


def test_packs_hold_every_row_once():
    batch = even(10, 3, "shuffled", 128, 4)
    found = packs(batch, "packed", most_rows=2)
    assert sorted(row for pack in found for row in pack.rows) == list(range(10))
    assert all(len(pack.rows) <= 2 and len({batch.groups[row] for row in pack.rows}) == 1 for pack in found)


def test_what_comes_from_memory():
    grouped, mixed = even(8, 4, "grouped", 100, 0), even(8, 4, "round-robin", 100, 0)
    assert memory_tokens(grouped, in_flight=1, cache_tokens=150) == 400  # each prefix once
    assert memory_tokens(mixed, in_flight=1, cache_tokens=150) == 800  # each row
    assert memory_tokens(mixed, in_flight=1, cache_tokens=400) == 400  # the cache holds all four
    assert memory_tokens(mixed, in_flight=8, cache_tokens=0) == 400  # swept together
    assert memory_tokens(grouped, in_flight=1, cache_tokens=50) == 800  # no prefix fits


def made_up(memory_gb_s, cache_gb_s, per_request_ms, in_flight, cache_bytes=32e6, token_bytes=2048):
    rows = []
    for requests in (8, 16, 32):
        for groups in (1, 2, 4, 8):
            for tokens in (1000, 8000):
                for order in ("grouped", "round-robin"):
                    row = {"heads": "h", "curve": "groups", "requests": requests, "prefix tokens": tokens, "own tokens": 32, "groups": groups,
                           "divergent": None, "order": order, "cache bytes": cache_bytes, "device": "d", "dtype": "bfloat16",
                           "metric": "attention time", "policy": "paged"}  # fmt: skip
                    batch = batch_of(row)
                    asked = batch.swept_tokens() * token_bytes
                    memory = memory_tokens(batch, in_flight, cache_bytes / token_bytes) * token_bytes
                    ms = requests * per_request_ms + memory / memory_gb_s / 1e6 + (asked - memory) / cache_gb_s / 1e6
                    rows.append({**row, "asked bytes": asked, "value": ms})
    return pd.DataFrame(rows)


def test_the_fit_finds_what_made_the_times():
    found = fit(made_up(20.0, 80.0, 0.05, in_flight=8))
    assert found.in_flight == 8
    assert found[:3] == pytest.approx((20.0, 80.0, 50.0), rel=1e-6)
    assert found.mape < 1e-9 and found.held_out_mape < 1e-9


def test_a_fit_of_two_devices_or_of_too_little_is_refused():
    table = made_up(20.0, 80.0, 0.05, in_flight=1)
    with pytest.raises(ValueError, match="one fit is of one device; these rows have: d, e"):
        fit(pd.concat([table, table.assign(device="e")]))
    with pytest.raises(ValueError, match="3 conditions are too few"):
        fit(table.head(3))


NCU = """==PROF== Connected to process 1
"ID","Process ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","1","paged_kernel","dram__bytes_read.sum","byte","1,000"
"0","1","paged_kernel","dram__bytes_write.sum","byte","10"
"0","1","paged_kernel","lts__t_sectors_lookup_hit.sum","sector","75"
"0","1","paged_kernel","lts__t_sectors_lookup_miss.sum","sector","25"
"1","1","merge_kernel","dram__bytes_read.sum","byte","500"
"""


def tool(folder, monkeypatch, name, text, code=0, to="1"):
    """A program of that name that says ``text``, first on the PATH."""
    (folder / "said").write_text(text)
    (folder / name).write_text(f"#!/bin/sh\ntrap '' INT\nsleep 0.5\ncat {folder}/said >&{to}\nexit {code}\n")
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


def test_gpu_counters_are_added_up_over_kernels(tmp_path, monkeypatch):
    tool(tmp_path, monkeypatch, "ncu", NCU)
    found = counters.ncu(["-c", "pass"])
    assert found["DRAM bytes read"] == (1500.0, "bytes") and found["L2 hit rate"][0] == 0.75


def test_counters_that_cannot_be_read_say_why(tmp_path, monkeypatch):
    tool(tmp_path, monkeypatch, "ncu", "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission\n", code=1)
    with pytest.raises(counters.Unreadable, match="administrators only"):
        counters.ncu(["-c", "pass"])
    tool(tmp_path, monkeypatch, "ncu", "nothing\n")
    with pytest.raises(counters.Unreadable, match="ncu gave nothing for dram__bytes_read.sum"):
        counters.ncu(["-c", "pass"])
    tool(tmp_path, monkeypatch, "perf", "<not supported>,,LLC-loads,0,100.00,,\n", to="2")
    with pytest.raises(counters.Unreadable, match="perf cannot count LLC-loads and LLC-load-misses here: <not supported>"):
        counters.perf(lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(counters.Unreadable, match="ncu .* is not on the PATH"):
        counters.ncu(["-c", "pass"])


def test_the_benchmark_needs_no_engine_to_load():
    code = "import sys; sys.modules['vllm'] = None; import benchmarks.decode_attention, lab.studies.decode_attention, lab.model.bandwidth"
    done = run("-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--heads", "gpt-5"], "--heads 'gpt-5' is not one of: "),
        (["--repeats", "0"], "--repeats 0 must be at least 1"),
        (["--rows", "/nowhere/x.csv.gz"], "there is no folder /nowhere"),
    ],
)
def test_a_wrong_command_line_gets_one_line(arguments, message):
    done = run("-m", "benchmarks.decode_attention", *arguments)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_the_fit_goes_into_the_modelled_device():
    found = fit(made_up(20.0, 80.0, 0.05, in_flight=8))
    device = calibrate(H200, found)
    assert device.memory_rate == pytest.approx(20e9, rel=0.1) and device.cache_rate == pytest.approx(80e9, rel=0.1)
    assert device.concurrent_rows == 8 and device.flop_rate == H200.flop_rate
    assert "fitted" in device.sources["memory_rate"] and "data sheet" in device.sources["flop_rate"]
    blind = calibrate(H200, found._replace(cache_gb_s=float("inf")))
    assert blind.cache_rate == H200.cache_rate
