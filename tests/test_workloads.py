"""Workloads: what is drawn, what is read, and what is said of a file that is not as it should be."""

import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
import zipfile
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.workloads import (
    VOCABULARY,
    Prompt,
    Workload,
    documents,
    even_sizes,
    grouped,
    make_prefix_tree,
    make_prefixes,
    samples,
    sources,
    traces,
)
from lab.workloads.__main__ import main
from lab.workloads.arrivals import arrivals, at_rate
from lab.workloads.lines import DataError
from lab.workloads.sources import SOURCES, File, Source, locate


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return samples.write(tmp_path_factory.mktemp("samples"))


def shared(one, other):
    unequal = [place for place, (left, right) in enumerate(zip(one, other)) if left != right]
    return unequal[0] if unequal else min(len(one), len(other))


# Drawn


def test_leaves_of_a_prefix_tree_share_what_their_common_ancestors_hold():
    leaves = make_prefix_tree([2, 3, 2], [5, 7, 11], seed=1)
    assert len(leaves) == 12 and {len(leaf) for leaf in leaves} == {23}
    for one in range(12):
        for other in range(12):
            same = [one // 6 == other // 6, one // 2 == other // 2, one == other]
            assert shared(leaves[one], leaves[other]) == sum(length for length, agree in zip((5, 7, 11), same) if agree)
    assert make_prefix_tree([4], [9], seed=3) == make_prefixes(4, 9, seed=3), "one level is unrelated prefixes"


@pytest.mark.parametrize("children, tokens", [([], []), ([2], [3, 4]), ([0], [3]), ([2], [0])])
def test_a_tree_without_a_node_or_a_token_is_refused(children, tokens):
    with pytest.raises(ValueError, match="positive number of children and of tokens"):
        make_prefix_tree(children, tokens)


@pytest.mark.parametrize("variation", [0.5, 1.0, 3.0])
def test_gaps_have_the_mean_and_the_variation_asked_for(variation):
    gaps = np.diff(arrivals(np.random.default_rng(0), 100_000, 4.0, variation), prepend=0)
    assert gaps.mean() == pytest.approx(0.25, rel=0.05) and gaps.std() / gaps.mean() == pytest.approx(variation, rel=0.05)


def test_all_at_once_without_a_rate_and_a_rate_that_is_none_is_refused():
    assert not arrivals(np.random.default_rng(0), 5, None).any()
    for rate, variation in ((0, 1), (-1, 1), (1, 0), (float("nan"), 1)):
        with pytest.raises(ValueError, match="positive rate and variation"):
            arrivals(np.random.default_rng(0), 5, rate, variation)


def test_a_workload_is_in_order_of_arrival():
    prompts = [Prompt([1], 0, 1, arrival) for arrival in (0.0, 2.0, 1.0)]
    with pytest.raises(ValueError, match="prompt 2 arrives at 1.0 s, after one at 2.0 s"):
        Workload(prompts)
    with pytest.raises(ValueError, match="prompt 0 arrives at nan s"):
        Workload([Prompt([1], 0, 1, float("nan"))])
    bursts = grouped(make_prefixes(2, 8), [50, 50], seed=1, requests_per_s=10, variation=4)
    assert bursts.prompts[-1].arrival > bursts.prompts[0].arrival


@pytest.mark.parametrize("prompts, message", [
    ([], "a workload needs at least one prompt"),
    ([Prompt([1], 0, 1, float("inf"))], "prompt 0 arrives at inf s"),
    ([Prompt([1], 0, 1), Prompt([], 0, 1)], "prompt 1 has 0 tokens and asks for 1"),
    ([Prompt([1], 0, 0)], "prompt 0 has 1 tokens and asks for 0"),
    ([Prompt([1], 0, 1.5)], "asks for 1.5: both must be whole numbers"),
])  # fmt: skip
def test_a_workload_that_cannot_run_is_refused(prompts, message):
    with pytest.raises(ValueError, match=message):
        Workload(prompts)


@pytest.mark.parametrize("options, message", [
    ({"sizes": [1, 1, 1]}, "at most one for each of the 2 prefixes"), ({"sizes": [2, -1]}, "sizes=.* must not be negative"),
    ({"suffix_tokens": -1}, "suffix_tokens=-1 must not be negative"), ({"decode_tokens": (5, 2)}, "decode_tokens=.5, 2. be at least 1, as .low, high."),
])  # fmt: skip
def test_groups_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        grouped(make_prefixes(2, 16), **{"sizes": [1, 1], "seed": 1, **options})
    with pytest.raises(ValueError, match="5 requests over 0 groups"):
        even_sizes(5, 0)


@settings(derandomize="CI" in os.environ)
@given(st.lists(st.integers(0, 10**9), min_size=2, unique=True), st.floats(0.01, 1e4))
def test_recorded_times_keep_their_pattern_at_another_rate(milliseconds, rate):
    times = [time / 1e3 for time in sorted(milliseconds)]
    scaled, faster = at_rate(times, rate)
    assert scaled[0] == 0 and scaled[-1] == pytest.approx((len(times) - 1) / rate)
    np.testing.assert_allclose(np.array(scaled) * faster, np.array(times) - times[0], atol=1e-6 * times[-1])


# Documents


def test_documents_are_what_questions_share_and_no_run_finds_another_runs_questions(made):
    reading = documents.Reading(documents.read_leval(made / "leval" / "made.jsonl"), 300, 40, (4, 20))
    one, again, salted = reading.workload(1), reading.workload(1), reading.workload(1, salt=1)
    assert [len(prefix) for prefix in reading.prefixes] == [300] * 4 and len(one.prompts) == 32
    assert one.prompts == again.prompts
    for prompt, other in zip(one.prompts, salted.prompts):
        assert shared(prompt.tokens, reading.prefixes[prompt.group]) == 300
        assert prompt.group == other.group and prompt.tokens[301:] == other.tokens[301:] and shared(prompt.tokens, other.tokens) == 300
        assert 301 < len(prompt.tokens) <= 341 and 4 <= prompt.decode_tokens <= 20
        assert all(0 <= token < VOCABULARY for token in prompt.tokens)
    assert "cut to their first 300 (4 of them longer)" in one.note
    assert [prompt.group for prompt in reading.workload(2).prompts] != [prompt.group for prompt in one.prompts]
    assert len(reading.workload(1, requests=5).prompts) == 5


def test_longbench_questions_with_the_same_context_are_one_document(made):
    assert documents.read_longbench(made / "longbench" / "made.jsonl") == documents.read_leval(made / "leval" / "made.jsonl")


# Traces


def test_equal_blocks_of_a_trace_are_equal_tokens_and_others_are_not(made):
    trace = traces.read_mooncake(made / "mooncake" / "made.jsonl")
    workload = traces.replay(trace, seed=1, requests=len(trace.requests), block_tokens=8)
    assert not workload.warm and len(workload.prompts) == len(trace.requests)
    for one, of_one in zip(workload.prompts, trace.requests):
        assert abs(len(one.tokens) - of_one.input_tokens / 64) <= 1
        for other, of_other in zip(workload.prompts, trace.requests):
            blocks = shared(of_one.blocks, of_other.blocks)
            if blocks < min(len(of_one.blocks), len(of_other.blocks)):
                assert 8 * blocks <= shared(one.tokens, other.tokens) < 8 * (blocks + 1)
            else:
                assert shared(one.tokens, other.tokens) >= 8 * (blocks - 1)


def test_a_replay_is_a_stretch_of_the_trace_in_its_order_and_knows_its_conversations(made):
    trace = traces.read_mooncake(made / "mooncake" / "made.jsonl")
    talks = traces.conversations(trace)
    assert sum(map(len, talks)) == len(trace.requests) and 1 < len(talks) < len(trace.requests)
    for talk in talks:
        assert len({request.blocks[:2] for request in talk}) == 1, "all begin with block 0, and part at the second"
    workload = traces.replay(trace, seed=2, requests=20, block_tokens=32, requests_per_s=5)
    assert len(workload.prompts) == 20 and workload.prompts[-1].arrival == pytest.approx(19 / 5)
    first = int(re.match(r"requests (\d+) to \d+ of the trace's 60", workload.note)[1]) - 1
    groups = [next(group for group, talk in enumerate(talks) if request in talk) for request in trace.requests[first : first + 20]]
    assert [prompt.group for prompt in workload.prompts] == groups
    assert len({traces.replay(trace, seed=seed, requests=20).note for seed in range(9)}) > 3


def test_a_trace_with_one_short_request_still_falls_into_conversations():
    blocks = [(0,), (0, 1), (0, 1, 2), (0, 3), (0, 3, 4)]
    trace = traces.Trace([traces.Recorded(time, 512 * len(ids), 10, ids) for time, ids in enumerate(blocks)])
    assert sorted(len(talk) for talk in traces.conversations(trace)) == [1, 2, 2]


def test_prompts_that_are_too_long_for_the_model_are_cut_and_counted(made):
    trace = traces.read_mooncake(made / "mooncake" / "made.jsonl")
    workload = traces.replay(trace, seed=1, requests=30, block_tokens=64, most_tokens=300)
    assert max(len(prompt.tokens) + prompt.decode_tokens for prompt in workload.prompts) == 300
    assert int(re.search(r"(\d+) prompts cut to fit 300 tokens", workload.note)[1]) > 0
    with pytest.raises(ValueError, match="requests=61: the trace has 60"):
        traces.replay(trace, seed=1, requests=61)


def test_failed_requests_of_burstgpt_are_left_out_and_counted(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,m,100,7,107,API log\n6,m,50,0,50,API log\n")
    trace = traces.read_burstgpt(path)
    assert trace.requests == [traces.Recorded(5.0, 100, 7)] and trace.note == "1 failed requests, which have no response, left out"
    workload = traces.replay(trace, seed=1, requests=1)
    assert len(workload.prompts[0].tokens) == 100 and "1 failed requests" in workload.note


# What is wrong with a file

LEVAL = {"input": "a text", "instructions": ["why?"], "outputs": ["so"]}
LONG = {"context": "a text", "input": "why?", "answers": ["so"]}
MOON = {"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]}
GPT = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"


def but(record, **changes):
    return json.dumps({name: value for name, value in {**record, **changes}.items() if value is not None})


@pytest.mark.parametrize(
    "read, text, said",
    [
        (documents.read_leval, "{broken\n", "line 1: no JSON (Expecting property name"),
        (documents.read_leval, but(LEVAL)[:20], "line 1: the file ends in the middle of this line; fetch it again"),
        (documents.read_leval, "\n\n", "line 1: the line is empty; mend or remove the line"),
        (documents.read_leval, "", "line 1: the file is empty; fetch it again"),
        (documents.read_leval, "[1]\n", "line 1: a JSON object is expected, not '[1]'"),
        (documents.read_leval, b'{"input": "\xff"}\n', "line 1: no JSON ('utf-8' codec"),
        (documents.read_leval, but(LEVAL, outputs=None), "line 1: the field 'outputs' is missing; there are input, instructions"),
        (documents.read_leval, but(LEVAL, input=3), "line 1: 'input' is '3', not text"),
        (documents.read_leval, but(LEVAL, outputs=[]), "line 1: 1 'instructions' and 0 'outputs'"),
        (documents.read_leval, but(LEVAL, outputs=[4]), "line 1: 'outputs' holds something that is no text"),
        (documents.read_leval, but(LEVAL, input=" "), "line 1: the document ('input') is empty"),
        (documents.read_longbench, but(LONG, answers=[]), "line 1: 'answers' holds no text"),
        (documents.read_longbench, but(LONG, context=""), "line 1: the document ('context') is empty"),
        (traces.read_mooncake, but(MOON, timestamp=-1), "line 1: 'timestamp' is -1: a time before the trace begins"),
        (traces.read_mooncake, but(MOON, timestamp=float("nan")), "line 1: 'timestamp' is 'nan', not a finite number"),
        (traces.read_mooncake, but(MOON, output_length=0), "line 1: 'output_length' is 0: a request has at least one token"),
        (traces.read_mooncake, but(MOON, input_length=1.5), "line 1: 'input_length' is '1.5', not a whole number"),
        (traces.read_mooncake, but(MOON, output_length=True), "line 1: 'output_length' is 'True', not a whole number"),
        (traces.read_mooncake, but(MOON, hash_ids=[0]), "line 1: 1 'hash_ids' for 600 tokens in blocks of 512"),
        (traces.read_mooncake, but(MOON, hash_ids=[0, "x"]), "line 1: 'hash_ids' holds something that is no id"),
        (
            traces.read_burstgpt,
            "Timestamp,Model\n1,m\n",
            "line 1: the header lacks the column 'Request tokens'; it has ['Timestamp', 'Model']",
        ),
        (traces.read_burstgpt, "", "line 1: the header lacks the column 'Timestamp'; it has nothing"),
        (traces.read_burstgpt, GPT, "line 1: there is nothing under the header"),
        (traces.read_burstgpt, GPT + "2,m,5", "line 2: 3 columns where the header has 6"),
        (traces.read_burstgpt, GPT + "-1,m,5,5,10,API log\n", "line 2: 'Timestamp' is -1: a time before the trace begins"),
        (traces.read_burstgpt, GPT + "1,m,x,5,10,API log\n", "line 2: 'Request tokens' is 'x', which is no number"),
        (traces.read_burstgpt, GPT + "1,m,inf,5,10,API log\n", "line 2: 'Request tokens' is 'inf', which is no finite number"),
        (traces.read_burstgpt, GPT + "1,m,5,-5,10,API log\n", "line 2: 'Response tokens' is -5: a number of tokens is expected"),
        (traces.read_burstgpt, GPT + "1,m,0,5,10,API log\n", "line 2: 'Request tokens' is 0: a request has at least one token"),
    ],
)
def test_a_file_with_nothing_right_is_named_with_the_first_line_and_the_mend(read, text, said, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}, {said}") and "; " in str(error.value)


# Fetching


class Publisher(http.server.SimpleHTTPRequestHandler):
    short_by = 0

    def log_message(self, *arguments):
        pass

    def copyfile(self, source, outputfile):
        whole = source.read()
        outputfile.write(whole[: len(whole) - self.short_by])


@pytest.fixture
def publisher(tmp_path, monkeypatch):
    """A server of one folder in place of the publishers; gives the folder, its address, and a function that names the source."""
    folder = tmp_path / "published"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Publisher, directory=folder))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"

    def publish(name="trace.jsonl", content=b"first\n", **known):
        (folder / name).write_bytes(content)
        file = File(f"made/{name}", f"{address}/{name}", **known)
        monkeypatch.setitem(SOURCES, "made", Source("made", "made for a test", address, (file,)))

    yield publish
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(folder, capsys, name="made"):
    status = main(["fetch", name, "--to", str(folder)])
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return status, said.out, said.err.splitlines()[-1] if said.err else ""


def test_what_has_a_published_checksum_must_have_it(publisher, tmp_path, capsys):
    right = hashlib.sha256(b"first\n").hexdigest()
    publisher(sha256=right)
    status, out, _ = fetch(tmp_path, capsys)
    assert status == 0 and "0.0 MiB" in out and "6 bytes, checksum as published" in out
    assert (tmp_path / "made" / "trace.jsonl").read_bytes() == b"first\n"
    assert "already there, checksum as published" in fetch(tmp_path, capsys)[1]

    publisher(content=b"other\n", sha256=right)
    (tmp_path / "made" / "trace.jsonl").write_bytes(b"firs")  # damaged here, and changed there
    status, _, err = fetch(tmp_path, capsys)
    assert status == 2 and f"is not {right[:16]}…, that of the published file: damaged on the way, or changed since" in err
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["trace.jsonl"]


def test_without_one_the_first_copy_is_trusted_and_said_to_be_and_later_ones_are_held_against_it(publisher, tmp_path, capsys):
    publisher()
    status, out, _ = fetch(tmp_path, capsys)
    assert status == 0 and "no checksum is known beforehand" in out
    kept = json.loads((tmp_path / "checksums.json").read_text())["made/trace.jsonl"]
    assert kept["sha256"] == hashlib.sha256(b"first\n").hexdigest() and kept["bytes"] == 6
    assert "already there, checksum as first fetched" in fetch(tmp_path, capsys)[1]

    (tmp_path / "made" / "trace.jsonl").unlink()
    publisher(content=b"other\n")
    status, _, err = fetch(tmp_path, capsys)
    assert status == 2 and "that of the copy fetched first: damaged on the way, or changed since" in err
    assert "; to accept the new one, take 'made/trace.jsonl' out of" in err
    assert not list((tmp_path / "made").iterdir())


def test_a_transfer_that_breaks_off_leaves_nothing(publisher, tmp_path, capsys, monkeypatch):
    publisher()
    monkeypatch.setattr(Publisher, "short_by", 2)
    status, _, err = fetch(tmp_path, capsys)
    assert status == 2 and "trace.jsonl: the transfer ended after 4 of 6 bytes; the same command tries again" in err
    assert not list((tmp_path / "made").iterdir()) and not (tmp_path / "checksums.json").exists()


def test_an_archive_is_unpacked_and_nothing_of_it_lands_elsewhere(publisher, tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as bundle:
        bundle.writestr("../../data/one.jsonl", "{}\n")
        bundle.writestr("data/readme.txt", "words")
    publisher("data.zip", (tmp_path / "data.zip").read_bytes(), unpack="*.jsonl")
    assert fetch(tmp_path / "to", capsys)[0] == 0
    assert sorted(path.name for path in (tmp_path / "to" / "made").iterdir()) == ["data.zip", "one.jsonl"]
    publisher("data.zip", b"no archive", unpack="*.jsonl")
    status, _, err = fetch(tmp_path / "else", capsys)
    assert status == 2 and "data.zip is no zip archive" in err


def test_a_missing_file_a_dead_publisher_and_a_wrong_name_get_one_line(publisher, tmp_path, capsys, monkeypatch):
    publisher()
    monkeypatch.setitem(SOURCES, "gone", Source("gone", "", "", (File("gone/x", SOURCES["made"].page + "/x"),)))
    assert "/x: 404 File not found; see whether the publisher has moved it, and put it to" in fetch(tmp_path, capsys, "gone")[2]
    monkeypatch.setitem(SOURCES, "dead", Source("dead", "", "", (File("dead/x", "http://127.0.0.1:9/x"),)))
    assert (
        "http://127.0.0.1:9/x: cannot be reached ([Errno 111] Connection refused); with the file from elsewhere, put it to"
        in fetch(tmp_path, capsys, "dead")[2]
    )
    assert fetch(tmp_path, capsys, "lveal")[2] == "lab.workloads: no data set 'lveal': did you mean 'leval'?"
    (tmp_path / "file").touch()
    assert fetch(tmp_path / "file", capsys)[0] == 2


def test_where_data_is_looked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FEATHER_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="python -m lab.workloads fetch leval, or set FEATHER_DATA"):
        locate("leval/quality.jsonl")
    (tmp_path / "leval").mkdir()
    (tmp_path / "leval" / "quality.jsonl").write_text("{}")
    with pytest.raises(ValueError, match="has 2 bytes and the published file 467997: it was cut off or changed"):
        locate("leval/quality.jsonl")
    assert main(["list"]) == 0 and "here    leval/quality.jsonl" in capsys.readouterr().out
    monkeypatch.setenv("FEATHER_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="FEATHER_DATA=.*nowhere is no folder"):
        locate("leval/quality.jsonl")
    monkeypatch.delenv("FEATHER_DATA")
    assert sources.folder() == sources.FOLDER


def test_workloads_load_without_an_engine():
    code = "import sys, lab.workloads.__main__, lab.workloads.traces; from lab.workloads.text import encode; encode('a'); " \
           "heavy = {'torch', 'vllm', 'pandas', 'transformers'} & set(sys.modules); assert not heavy, heavy"  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=True)
