"""What is learned outlives the server however it ends, in one file for each engine; trouble with a file is told once."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from modelless import Driver, make_request, make_scheduler

import feather.sglang
from feather.memory import Memory
from feather.options import Options
from feather.policies import NeverStop, Step, Trace, trace
from feather.policies.checkpoint import is_ours
from feather.vllm import FeatherScheduler
from lab.policies import Bandit, BatchState, Decision

ROOT = str(Path(__file__).parents[1])
LOGGER = logging.getLogger("feather")


def taught(contexts=1):
    policy = Bandit()
    for number in range(contexts):
        state = BatchState(1 << number % 10, 1 << number // 10 % 10, 1 << number // 100, 9)
        policy.judge(Step(8, 0.01), [Decision(state, bool(number % 2))], alone=True)
    return policy


def kept(path):
    policy = Bandit()
    policy.load(path)
    return policy.table


def prompt(group, number, tokens=128):
    return [100 + group] * tokens + [1000 + number] * 7


class OfRank(FeatherScheduler):
    """As vLLM makes the scheduler of one data-parallel engine: of a dense model all have rank 0, and an index."""

    rank, moe = 0, False

    def __init__(self, config, *arguments, **named):
        parallel = config.parallel_config
        parallel.data_parallel_index = self.rank
        if self.moe:
            parallel.data_parallel_rank = self.rank
        else:
            parallel.reconfigure_for_independent_dp_rank()
        super().__init__(config, *arguments, **named)


@pytest.mark.parametrize("moe", [False, True], ids=["dense", "mixture of experts"])
def test_each_data_parallel_engine_of_vllm_has_files_of_its_own(tmp_path, monkeypatch, moe):
    monkeypatch.setattr(OfRank, "moe", moe)
    options = {
        "policy": "lab.policies.Bandit",
        "chunk_size": 32,
        "checkpoint": str(tmp_path / "learned.json"),
        "trace": str(tmp_path / "trace"),
    }
    for rank in range(3):
        monkeypatch.setattr(OfRank, "rank", rank)
        scheduler = make_scheduler(OfRank, tmp_path, feather=options, data_parallel_size=3)
        driver = Driver(scheduler)
        driver.add(*(make_request(scheduler, f"{i % 2}.{i}", prompt(i % 2, i), 10 + rank) for i in range(8)))
        driver.run()
    learned = {path.name: path.read_bytes() for path in tmp_path.glob("learned*")}
    assert learned.keys() == {"learned.json", "learned.json.1", "learned.json.2"} and len(set(learned.values())) == 3
    assert {path.name for path in tmp_path.glob("trace*")} == {"trace", "trace.rank1", "trace.rank2"}, "none is another's older half"
    for name in ("trace", "trace.rank1", "trace.rank2"):
        assert sum(step["tokens"] for step in trace.read(str(tmp_path / name))) == 8 * (10 + (int(name[-1]) if name[-1].isdigit() else 0))


@pytest.mark.skipif(feather.sglang.missing() is not None, reason=feather.sglang.missing() or "")
def test_each_data_parallel_engine_of_sglang_has_files_of_its_own_and_keeps_what_it_learned(tmp_path, monkeypatch):
    from sglang_modelless import Driver as SglangDriver
    from sglang_modelless import make_request as request

    from feather.sglang import install
    from lab.engines.sglang_modelless import ModellessScheduler

    class Ranked(ModellessScheduler):
        def init_schedule_policy(self):
            self.dp_rank = 2
            super().init_schedule_policy()

    install(
        {"policy": "lab.policies.Bandit", "chunk_size": 32, "checkpoint": str(tmp_path / "learned.json"), "trace": str(tmp_path / "trace")}
    )
    scheduler = Ranked(32_000)
    driver = SglangDriver(scheduler)
    driver.add(*(request(f"{i % 2}.{i}", prompt(i % 2, i), 20) for i in range(8)))
    driver.run()
    assert {path.name for path in tmp_path.iterdir()} == {"learned.json.2", "trace.rank2"}
    table = scheduler.policy.former.policy.table
    assert table and kept(tmp_path / "learned.json.2") == table


def test_a_server_that_lived_a_moment_has_kept_all_without_a_word_of_its_end(tmp_path):
    """As in the engine core that is killed while the API server waits for it: nobody calls shutdown."""
    path = tmp_path / "learned.json"
    scheduler = make_scheduler(
        FeatherScheduler, tmp_path, feather={"policy": "lab.policies.Bandit", "chunk_size": 32, "checkpoint": str(path)}
    )
    driver = Driver(scheduler)
    driver.add(*(make_request(scheduler, f"{i % 2}.{i}", prompt(i % 2, i), 20) for i in range(8)))
    driver.run()
    table = scheduler.waiting.former.policy.table
    assert table and kept(path) == table


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("feather.memory.time.monotonic", lambda: now[0])
    return now


def test_no_more_than_a_few_seconds_are_lost_while_requests_run_and_it_is_not_saved_at_every_step(tmp_path, clock, monkeypatch):
    path, policy = tmp_path / "learned.json", Bandit()
    saves = []
    save = Bandit.save
    monkeypatch.setattr(Bandit, "save", lambda self, path: (saves.append(clock[0]), save(self, path)))
    memory = Memory(str(path), LOGGER)
    learned_at = {}
    for step in range(3000):
        clock[0] = step * 0.02
        policy.judge(Step(8, 0.02), [Decision(BatchState(4, 1, 1, 9), True)], alone=True)
        learned_at[sum(outcome.steps for both in policy.table.values() for outcome in both.values())] = clock[0]
        memory.keep(policy)
        there = sum(outcome.steps for both in kept(path).values() for outcome in both.values()) if step % 50 == 0 and step >= 150 else None
        assert there is None or clock[0] - learned_at[there] <= 3.0
    assert 15 < len(saves) < 25, "60 seconds"


def test_what_a_last_request_taught_is_kept_at_once_and_a_trickle_is_not_saved_each_time(tmp_path, clock):
    path, policy = tmp_path / "learned.json", taught()
    memory = Memory(str(path), LOGGER)
    memory.keep(policy, idle=True)
    assert kept(path) == policy.table
    writes = 0
    for step in range(1000):  # ten requests a second, one after the other
        clock[0] = 0.1 * step
        before = path.stat().st_ino
        memory.keep(policy, idle=True)
        writes += path.stat().st_ino != before
    assert writes <= 210


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda end: end.name)
def test_whenever_it_is_killed_the_file_is_whole(tmp_path, end):
    file = tmp_path / "learned.json"
    policy = taught(900)
    code = (
        "import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it\n"
        "sys.path[:0] = [{root!r}]\nfrom feather.memory import Memory\nfrom lab.policies import Bandit\nimport logging\n"
        "policy = Bandit()\npolicy.load({start!r})\nmemory = Memory({file!r}, logging.getLogger())\nmemory.keep(policy, now=True)\n"
        "print('ready', flush=True)\nwhile True: memory.keep(policy, now=True)\n"
    ).format(root=ROOT, file=str(file), start=str(tmp_path / "start.json"))
    policy.save(tmp_path / "start.json")
    for attempt in range(4):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            process.stdout.readline()
            time.sleep(0.007 * attempt)
            for _ in range(100):  # an interrupt that falls into a destructor is ignored by Python
                process.send_signal(end)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(0.1)
                    break
            assert process.poll() is not None
        finally:
            process.kill()
            process.stdout.close()
        assert kept(file) == policy.table


@pytest.mark.parametrize("written", ["~/deep.json", "here.json", "./here.json", "../up.json", "a b ü.json"])
def test_a_path_may_start_at_home_or_here_and_means_the_same_wherever_the_server_goes(written, tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "work"))
    options = Options.from_mapping({"checkpoint": written, "trace": written + ".trace", "policy": "lab.policies.Bandit"}).for_rank(0)
    former = options.make_former()
    monkeypatch.chdir("/")
    Memory(options.checkpoint, LOGGER).keep(former.policy, now=True)
    former.trace.ran(Step(1, 1.0), former.policy)
    expected = (tmp_path / "work" / written.removeprefix("~/")).resolve()
    assert expected.is_file() and len(trace.read(f"{expected}.trace")) == 1
    assert Options.from_mapping({}).for_rank(3) == Options.from_mapping({}), "where there are none, nothing is made up"


def no_room(*arguments, **named):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_an_unwritable_checkpoint_is_told_once_and_leaves_nothing(tmp_path, caplog, monkeypatch):
    (tmp_path / "file").touch()
    paths = [tmp_path / "missing" / "x.json", tmp_path / "file" / "x.json", Path("/proc/x.json"), tmp_path, tmp_path / "nul\0"]
    for path in paths:
        caplog.clear()
        memory = Memory(str(path), LOGGER)
        with caplog.at_level(logging.WARNING, logger="feather"):
            for _ in range(5):
                memory.keep(taught(), now=True)
        assert len(caplog.records) == 1 and "could not keep what it has learned in" in caplog.text
    caplog.clear()
    memory = Memory(str(tmp_path / "full.json"), LOGGER)
    memory.keep(taught(1), now=True)
    with monkeypatch.context() as full, caplog.at_level(logging.WARNING, logger="feather"):
        full.setattr(Path, "replace", no_room)
        for _ in range(5):
            memory.keep(taught(2), now=True)
    assert len(caplog.records) == 1 and "No space left on device" in caplog.text
    assert kept(tmp_path / "full.json") == taught(1).table, "as it was"
    assert {path.name for path in tmp_path.iterdir()} == {"file", "full.json"}, "and no half of another"
    memory.keep(taught(2), now=True)
    assert kept(tmp_path / "full.json") == taught(2).table, "and goes on when there is room"


@pytest.mark.parametrize("path", ["/dev/full", "/nowhere/trace", "/proc/trace", "nul\0"])
def test_a_trace_that_cannot_be_written_is_told_once_and_serving_goes_on(tmp_path, caplog, path, capfd):
    with caplog.at_level(logging.WARNING, logger="feather"):
        scheduler = make_scheduler(FeatherScheduler, tmp_path, feather={"chunk_size": 32, "trace": path})
        driver = Driver(scheduler)
        driver.add(*(make_request(scheduler, f"{i % 2}.{i}", prompt(i % 2, i), 6) for i in range(8)))
        driver.run()
    assert len(driver.finished) == 8 and scheduler.fallback is None
    assert len([record for record in caplog.records if "trace" in record.message]) == 1
    assert "Logging error" not in capfd.readouterr().err


def test_no_two_processes_write_one_file(tmp_path, caplog):
    path, log = tmp_path / "learned.json", tmp_path / "trace"
    code = (
        f"import sys; sys.path[:0] = [{ROOT!r}]\nfrom feather.policies.checkpoint import is_ours\n"
        f"assert all(is_ours(path) for path in {[str(path), str(log)]!r})\nprint('ours', flush=True)\nsys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"ours\n"
    memory = Memory(str(path), LOGGER)
    with caplog.at_level(logging.WARNING, logger="feather"):
        for _ in range(3):
            memory.keep(taught(), now=True)
        former = Options.from_mapping({"policy": "never_stop", "trace": str(log)}).make_former()
    assert not path.exists() and not log.exists() and former.trace is None
    assert [record.message.count("another process") for record in caplog.records] == [1, 1]
    with pytest.raises(OSError, match="another process writes .*: give each server a file"):
        Trace(str(log))
    assert is_ours(str(tmp_path / "third")) and is_ours(str(tmp_path / "third"))
    other.kill()
    other.wait(10)
    other.stdin.close()
    other.stdout.close()
    memory.keep(taught(), now=True)
    assert kept(path) == taught().table, "the other has ended"
    assert list(tmp_path.iterdir()) == [path], "a claim leaves no file"


def test_a_trace_that_ended_on_a_full_disk_can_be_read(tmp_path):
    path = tmp_path / "trace"
    written = Trace(str(path))
    for _ in range(5):
        written.ran(Step(1, 1.0), NeverStop())
    stream = written._handler.stream
    written._handler.stream = open("/dev/full", "w", encoding="utf-8")  # noqa: SIM115
    for _ in range(5):
        written.ran(Step(1, 1.0), NeverStop())
    written._handler.stream = stream
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"tokens": 1})[:5])
    assert len(trace.read(str(path))) == 5


class Odd(NeverStop):
    kind = "odd"

    def save(self, path):
        raise TypeError("Object of type float32 is not JSON serializable")

    def load(self, path):
        raise RecursionError("maximum recursion depth exceeded")


def test_a_policy_that_cannot_be_kept_or_recalled_is_told_once_and_stops_nothing(tmp_path, caplog):
    memory = Memory(str(tmp_path / "checkpoint.json"), logging.getLogger("test"))
    with caplog.at_level("WARNING"):
        memory.recall(Odd())
        for _ in range(3):
            memory.keep(Odd(), now=True)
    assert [record.getMessage().split(": ", 1)[1] for record in caplog.records] == [
        "RecursionError: maximum recursion depth exceeded",
        "TypeError: Object of type float32 is not JSON serializable",
    ]
