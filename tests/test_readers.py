"""Data files as their publishers have them, and as they are after a life on other people's disks: what is right is used, what is not is
counted. And what a replay leaves of a trace: its order and its bursts."""

import csv
import gzip
import json
import logging
import os
import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab.studies import datasets
from lab.workloads import documents, samples, traces
from lab.workloads.documents import Document, Reading
from lab.workloads.lines import DataError
from lab.workloads.sources import locate
from lab.workloads.text import encode

HEADER = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
LEVAL = {"input": "a text", "instructions": ["why?"], "outputs": ["so"]}
LONG = {"context": "a text", "input": "why?", "answers": ["so"]}
MOON = {"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]}


def good(read, number):
    """A line that is right, another one for every number."""
    if read is documents.read_leval:
        return json.dumps({**LEVAL, "input": f"text {number}"})
    if read is documents.read_longbench:
        return json.dumps({**LONG, "context": f"text {number}"})
    if read is traces.read_mooncake:
        return json.dumps({**MOON, "timestamp": 1000 * number})
    return f"{number},ChatGPT,10,4,14,API log"


READERS = (documents.read_leval, documents.read_longbench, traces.read_mooncake, traces.read_burstgpt)
every_reader = pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)


def found(read, path):
    """What was read, as the numbers that ``good`` put in."""
    if read in (documents.read_leval, documents.read_longbench):
        return [int(document.text.split()[1]) for document in read(path)]
    return [int(request.time) for request in read(path).requests]


def file_of(read, lines, end="\n"):
    return end.join(([HEADER.strip()] if read is traces.read_burstgpt else []) + lines) + end


FORMS = {
    "UTF-8": str.encode,
    "byte-order mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "UTF-16": lambda text: text.encode("utf-16"),
    "UTF-16, big end first": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
    "UTF-16 without a mark": lambda text: text.encode("utf-16-le"),
    "UTF-16 without a mark, big end first": lambda text: text.encode("utf-16-be"),
    "UTF-32": lambda text: text.encode("utf-32"),
    "Windows line ends": lambda text: text.replace("\n", "\r\n").encode(),
    "old Mac line ends": lambda text: text.replace("\n", "\r").encode(),
    "no end of the last line": lambda text: text.rstrip("\n").encode(),
    "gzip": lambda text: gzip.compress(text.encode()),
    "gzip in two parts": lambda text: gzip.compress(text[:50].encode()) + gzip.compress(text[50:].encode()),
    "gzip of a file with a mark": lambda text: gzip.compress(b"\xef\xbb\xbf" + text.encode()),
}


@every_reader
@pytest.mark.parametrize("form", FORMS)
def test_a_file_is_taken_in_whatever_form_it_comes(read, form, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(FORMS[form](file_of(read, [good(read, number) for number in range(5)])))
    assert found(read, path) == [0, 1, 2, 3, 4]
    note = read(path).note
    assert not note


@every_reader
def test_empty_lines_and_half_a_last_line_are_left_out_and_counted(read, tmp_path, caplog):
    path = tmp_path / "file"
    path.write_text(file_of(read, [good(read, 1), "", "  ", good(read, 2)]) + good(read, 3)[:7], encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        assert found(read, path) == [1, 2]
    assert read(path).note.startswith("2 empty lines, left out; 1 ")
    assert (
        len({record.message for record in caplog.records if "the first in line" in record.message}) == 2 and "line is empty" in caplog.text
    )


@every_reader
def test_a_gzip_that_was_cut_off_gives_what_is_left_of_it(read, tmp_path):
    path = tmp_path / "file.gz"
    rng = random.Random(0)
    whole = gzip.compress(file_of(read, [good(read, rng.randrange(10**9)) for _ in range(3000)]).encode())
    path.write_bytes(whole[: len(whole) // 2])
    assert 500 < len(found(read, path)) < 3000 and "1 damaged ends of the file, left out" in read(path).note
    path.write_bytes(whole[:12])
    with pytest.raises(DataError, match="line 1: the compressed file is damaged from here on .*; fetch it again"):
        read(path)


BAD_JSON = {
    "no JSON": ["{", "nonsense", '{"input": "\t"}', "[" * 100_000, "9" * 5000], "no object": ["3", "[]", "null", '"text"'],
    "a field is missing": ["{}", '{"\\ud800": 1}'],
}  # fmt: skip
BAD = {
    documents.read_leval: [
        *({**LEVAL, "input": text} for text in ("", " \n", 3, None, ["text"])),
        *({**LEVAL, "outputs": answers} for answers in ([], [1], ["a", "b"], "so", None)),
    ],
    documents.read_longbench: [*({**LONG, "context": text} for text in ("", 3, None)), *({**LONG, "answers": given} for given in ([], [1], "so"))],
    traces.read_mooncake: [
        *({**MOON, "timestamp": time} for time in (-1, float("nan"), float("inf"), "0", None, True, 1e300)),
        *({**MOON, "input_length": tokens} for tokens in (0, -5, 1.5, "600", 10**400, 10**15, True, None)),
        *({**MOON, "output_length": tokens} for tokens in (0, 10**20, 0.5)),
        *({**MOON, "hash_ids": ids} for ids in ([], [0], [0, -1], [0, "1"], [0, True], [0, 10**30], {"0": 1}, None)),
    ],
}  # fmt: skip
BAD_CSV = [
    "-1,m,10,4,14,x", "nan,m,10,4,14,x", "1e300,m,10,4,14,x", "x,m,10,4,14,x", ",m,10,4,14,x", "5,m,10.5,4,14,x", "5,m,-1,4,14,x", "5,m,0,4,14,x",
    "5,m,inf,4,14,x", "5,m,10,1e18,14,x", "5,m,10,4", "5,m,10,4,14,x,y,z", '"', "\x00", "5,m,10,0,10,x",
]  # fmt: skip


@every_reader
def test_lines_that_are_wrong_are_left_out_and_counted_and_nothing_else_is(read, tmp_path):
    wrong = BAD_CSV if read is traces.read_burstgpt else [*sum(BAD_JSON.values(), []), *(json.dumps(record) for record in BAD[read])]
    path = tmp_path / "file"
    lines = [line for number, bad in enumerate(wrong) for line in (good(read, number), bad)]
    path.write_text(file_of(read, lines), encoding="utf-8")
    assert found(read, path) == list(range(len(wrong)))
    assert sum(int(part.split()[0]) for part in read(path).note.split("; ")) == len(wrong)
    for bad in wrong:  # and where there is nothing else
        path.write_text(file_of(read, [bad]), encoding="utf-8")
        with pytest.raises(DataError, match=f"file, line {1 + (read is traces.read_burstgpt)}: .*; (mend or remove|fetch)"):
            read(path)


@pytest.mark.parametrize(
    "row", ['2,ChatGPT,10,4,14,"API log', '2,"ChatGPT,10,4,14,API log', '2,Chat"GPT,10,4,14,API log', '"2,ChatGPT",10,4,14,API log', '2,ChatGPT,10,4,14,API "log""']
)  # fmt: skip
def test_a_stray_quotation_mark_swallows_no_other_line(row, tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text(HEADER + f"1,m,10,4,14,x\n{row}\n" + "3,m,10,4,14,x\n" * 9000, encoding="utf-8")
    requests = traces.read_burstgpt(path).requests
    assert len(requests) == 9002 and requests[1] == traces.Recorded(2.0, 10, 4)


def test_a_cell_may_hold_a_comma_in_quotation_marks_and_be_very_long(tmp_path):
    path = tmp_path / "trace.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([HEADER.strip().split(","), [1, "a, b", 10, 4, 14, "x"], [2, "y" * 200_000, 10, 4, 14, "x"]])
    assert [request.time for request in traces.read_burstgpt(path).requests] == [1, 2]


@every_reader
def test_files_put_one_after_the_other_keep_all_lines(read, tmp_path):
    path = tmp_path / "file"
    marked = "\ufeff" + good(read, 1)
    path.write_text("\ufeff" + file_of(read, [good(read, 0), marked, good(read, 2)]), encoding="utf-8")
    assert found(read, path) == [0, 1, 2]


@pytest.mark.parametrize("content", [b"\0" * 10**5, b"x," * 10**5, b"PK\3\4" + b"\0" * 999])
def test_a_header_that_is_none_is_shown_in_a_short_line(content, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(DataError, match="line 1: the header lacks the column 'Timestamp'; it has .*; fetch it again") as error:
        traces.read_burstgpt(path)
    assert len(str(error.value)) - len(str(path)) < 250


@pytest.mark.parametrize("name, encoding", [("Jérôme", "latin-1"), ("报告", "gbk"), ("Καλημέρα", "cp1253")])
def test_text_in_another_encoding_is_used_with_its_strange_letters_replaced(name, encoding, tmp_path):
    path = tmp_path / "file"
    record = {**LEVAL, "input": f"a text by {name}"}
    path.write_bytes(json.dumps(record, ensure_ascii=False).encode(encoding))
    (document,) = read = documents.read_leval(path)
    assert document.text.startswith("a text by ") and "\ufffd" in document.text and encode(document.text)
    assert read.note == "1 lines with bytes that are no UTF-8, replaced"
    path.write_bytes(HEADER.encode() + f"1,{name},10,4,14,x\n".encode(encoding))
    assert len(traces.read_burstgpt(path).requests) == 1


@pytest.mark.parametrize("half", [r"\ud800", r"\udfff", r"\ud83d and \ude00", r"\uDE00\uD83D"])
def test_halves_of_characters_are_replaced_and_pairs_are_not(half, tmp_path):
    path = tmp_path / "file"
    path.write_text(f'{{"input": "a {half} text", "instructions": ["{half}?"], "outputs": ["\\ud83d\\ude00"]}}', encoding="utf-8")
    (document,) = read = documents.read_leval(path)
    for text in (document.text, *document.questions):
        assert "\ufffd" in text and text.encode()
    assert document.answers == ["\U0001f600"] and read.note == "1 lines with halves of characters, replaced"
    assert Reading(read, 10, 10, (1, 5)).workload(1).prompts
    assert encode("a \ud800 text") == encode("a \ufffd text")


def test_the_same_document_on_several_lines_is_one_and_a_question_is_asked_once(tmp_path):
    """As in L-Eval's financial_qa, scientific_qa and gsm100."""
    path = tmp_path / "leval.jsonl"
    lines = [{"input": "a report", "instructions": [f"{n % 2}?", "both?"], "outputs": [str(n), "yes"]} for n in range(3)] + [LEVAL]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    read = documents.read_leval(path)
    assert read == [Document("a report", ["0?", "both?", "1?"], ["0", "yes", "1"]), Document("a text", ["why?"], ["so"])]
    assert read.note == "3 questions that were asked before of the same document, left out"
    reading = Reading(read, 300, 40, (4, 20))
    prompts = reading.workload(1).prompts
    assert len({tuple(prompt.tokens) for prompt in prompts}) == len(prompts) == 4 and {prompt.group for prompt in prompts} == {0, 1}
    assert read.note in reading.workload(1).note

    long = [{"context": "a report", "input": f"{n % 2}?", "answers": [str(n)]} for n in range(3)]
    path.write_text("".join(json.dumps(line) + "\n" for line in long), encoding="utf-8")
    assert documents.read_longbench(path) == [Document("a report", ["0?", "1?"], ["0", "1"])]


def test_the_same_document_in_two_files_is_one(tmp_path, monkeypatch):
    samples.write(tmp_path)
    for name in ("coursera", "quality"):
        (tmp_path / "leval" / f"{name}.jsonl").write_text(json.dumps(LEVAL) + "\n\n", encoding="utf-8")
    monkeypatch.setattr("lab.studies.datasets.locate", lambda file: tmp_path / file)
    data = datasets.load(["leval/coursera.jsonl", "leval/quality.jsonl"], 2, "mooncake/made.jsonl")
    assert list(data.documents) == [Document("a text", ["why?"], ["so"])]
    assert data.documents.note.startswith("leval/coursera.jsonl: 1 empty lines, left out; leval/quality.jsonl: 1 empty lines")


def test_a_compressed_file_is_found_beside_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("FEATHER_DATA", str(tmp_path))
    (tmp_path / "burstgpt").mkdir()
    (tmp_path / "burstgpt" / "BurstGPT_1.csv.gz").write_bytes(gzip.compress((HEADER + "1,m,10,4,14,x\n").encode()))
    assert len(traces.read_burstgpt(locate("burstgpt/BurstGPT_1.csv")).requests) == 1


@pytest.mark.parametrize("row, cut", [
    ("6,m,1000000000,4,1000000004,x", True), ("6,m,10,999999999999,14,x", True), ("6,m,99999999999999,99999999999999,14,x", True),
    ("999999999999999,m,10,4,14,x", False),
])  # fmt: skip
def test_an_absurd_length_is_cut_before_it_takes_the_memory(row, cut, tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text(HEADER + f"5,m,10,4,14,x\n{row}\n", encoding="utf-8")
    for rate in (None, 10.0):
        workload = traces.replay(traces.read_burstgpt(path), 1, 2, 512, rate, most_tokens=2000)
        assert max(len(prompt.tokens) + prompt.decode_tokens for prompt in workload.prompts) <= 2000
        assert ("1 prompts cut to fit 2000 tokens" in workload.note) is cut


# Fuzzed

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=8)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=6
)
names = st.sampled_from([*LEVAL, *LONG, *MOON])
lines_of_json = st.dictionaries(names, values, max_size=5).map(lambda record: json.dumps(record).encode())
cells = st.sampled_from(["1", "0", "-1", "1e9", "1e999", "nan", '"', '"a,b"', "x", "", "\x00", "1_0", " 7 "]) | st.text(
    st.characters(codec="latin-1"), max_size=4
)
lines_of_csv = st.lists(cells, max_size=8).map(lambda row: ",".join(row).encode("latin-1"))
fuzzed = settings(max_examples=60, derandomize="CI" in os.environ, deadline=None, suppress_health_check=list(HealthCheck))


def run_of(read, path):
    """What is read can be replayed, or asked about."""
    if read in (documents.read_leval, documents.read_longbench):
        return Reading(read(path), 50, 20, (1, 5)).workload(1)
    trace = read(path)
    return traces.replay(trace, 1, len(trace.requests), 8, 10.0, most_tokens=300)


@every_reader
@fuzzed
@given(data=st.data())
def test_any_bytes_are_read_or_refused_with_the_line(read, tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / f"fuzzed {read.__name__}"
    one = st.binary(max_size=40) | (lines_of_csv if read is traces.read_burstgpt else lines_of_json) | st.just(good(read, 1).encode())
    content = b"\n".join(data.draw(st.lists(one, max_size=6)))
    if read is traces.read_burstgpt and data.draw(st.booleans()):
        content = HEADER.encode() + content
    path.write_bytes(
        data.draw(st.sampled_from([bytes, gzip.compress, lambda text: gzip.compress(text)[:-5], lambda text: b"\xff\xfe" + text]))(content)
    )
    try:
        run_of(read, path)
    except DataError as error:
        assert str(error).startswith(f"{path}, line ") and "; " in str(error) and "\n" not in str(error).replace("\\n", "")


@every_reader
@fuzzed
@given(data=st.data())
def test_no_damage_costs_a_line_that_is_right(read, tmp_path_factory, data):
    """Whatever stands between them, all right lines are read, in their order."""
    path = tmp_path_factory.getbasetemp() / f"damaged {read.__name__}"
    damage = st.binary(max_size=30) | (lines_of_csv if read is traces.read_burstgpt else lines_of_json.filter(lambda line: len(line) < 60))
    between = data.draw(st.lists(damage, min_size=1, max_size=6))
    lines = [line for number, bad in enumerate(between) for line in (good(read, 10**6 + number).encode(), bad)]
    content = (HEADER.encode() if read is traces.read_burstgpt else b"") + b"\n".join([*lines, b""])
    path.write_bytes(content)
    numbers = [number for number in found_texts(read, path) if 10**6 <= number < 10**6 + len(between)]
    assert numbers == [10**6 + number for number in range(len(between))]


def found_texts(read, path):
    if read in (documents.read_leval, documents.read_longbench):
        return [
            int(text[1]) for document in read(path) if len(text := document.text.split()) == 2 and text[1].isascii() and text[1].isdigit()
        ]
    return [int(request.time) for request in read(path).requests]


# Replay


def dispersion(times, each=2.5):
    """The index of dispersion: variance over mean of the arrivals in windows in which ``each`` are expected. 1 for a Poisson process."""
    times = np.asarray(times)
    width = each * (times[-1] - times[0]) / (len(times) - 1)
    counts = np.bincount(((times - times[0]) / width).astype(int))[:-1]
    return counts.var() / counts.mean()


def bursts(kind, count=8_000):
    rng = np.random.default_rng(0)
    if kind == "gamma":  # a coefficient of variation of 4, as in BurstGPT's busy hours
        return np.floor(np.cumsum(rng.gamma(1 / 16, 16 * 26.0, count)))
    if kind == "batches":  # as in Mooncake's conversation trace: several every three seconds
        return np.repeat(3.0 * np.arange(count // 10), 10)
    if kind == "on and off":
        return np.cumsum(np.where(np.arange(count) % 200 < 199, rng.exponential(0.05, count), 120.0))
    return np.cumsum(rng.exponential(1.0, count))  # Poisson


def trace_of(times):
    return traces.Trace([traces.Recorded(float(time), 600, 5, (0, number + 1)) for number, time in enumerate(times)])


@pytest.mark.parametrize("kind", ["gamma", "batches", "on and off", "Poisson"])
def test_a_replay_is_as_bursty_as_its_trace(kind):
    """Scaled it is so exactly; cut, on average over where it begins."""
    trace = trace_of(bursts(kind))
    times = [request.time for request in trace.requests]
    whole = traces.replay(trace, 1, len(times), 8, 40.0)
    assert dispersion([prompt.arrival for prompt in whole.prompts]) == pytest.approx(dispersion(times), rel=0.02)
    cut = [dispersion([prompt.arrival for prompt in traces.replay(trace, seed, 1000, 8, 40.0).prompts]) for seed in range(12)]
    assert np.mean(cut) == pytest.approx(dispersion(times), rel=0.35)
    assert bool(np.mean(cut) > 2) is (kind != "Poisson")


@pytest.mark.parametrize("requests", [8, 48, 500])
def test_a_replay_keeps_the_order_and_the_gaps_of_its_stretch(requests):
    times = bursts("gamma")
    workload = traces.replay(trace_of(times), 3, requests, 8, 40.0)
    first = int(workload.note.split()[1]) - 1
    gaps, recorded = np.diff([prompt.arrival for prompt in workload.prompts]), np.diff(times[first : first + requests])
    np.testing.assert_allclose(gaps * recorded.sum(), recorded * gaps.sum(), atol=1e-6 * recorded.sum())
    assert gaps.sum() == pytest.approx((requests - 1) / 40.0)


def test_requests_of_one_second_arrive_at_once_and_the_note_says_so():
    workload = traces.replay(trace_of([7.0] * 20), 1, 10, 8, 40.0)
    assert not any(prompt.arrival for prompt in workload.prompts) and "all there at the start" in workload.note


# In the study


class Table:
    """A measured table, as far as the check of a trace looks at it."""

    def __init__(self, hits):
        self.hits = hits

    def measure(self, *arguments):
        import pandas as pd

        return pd.DataFrame({"metric": "prefix hits", "value": self.hits})


@pytest.mark.parametrize("blocks, hits, refused", [((), [0.0, 0.0], ""), ((0, 1), [0.1, 0.2], ""), ((), [0.1, 0.2], "nothing that it tells of"), ((0, 1), [0.0], "some of")])  # fmt: skip
def test_a_trace_that_tells_of_no_sharing_is_measured_too(blocks, hits, refused):
    trace = traces.Trace([traces.Recorded(float(time), 600, 5, blocks) for time in range(9)])
    data = datasets.Datasets([], "documents", trace, "BurstGPT")
    study = Table(hits)
    study.engine = None
    cut = datasets.Cut(3, 8, 10.0)
    if refused:
        with pytest.raises(RuntimeError, match=refused):
            datasets.traffic(study, data, cut, 1)
    else:
        assert len(datasets.traffic(study, data, cut, 1)) == len(hits)
    assert ("does not tell what they share" in datasets.sharing(trace)) is not blocks
