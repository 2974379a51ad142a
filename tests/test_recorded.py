"""What is kept of earlier runs, and how a later run's report shows it."""

import json
import re
from html import unescape

import pandas as pd
import pytest

from lab import book, machine
from lab.artifact import overview, recorded, report
from lab.claims import CLAIMS, verdict
from lab.stats import Ratio
from lab.studies.study import Study, compare, frame, read

HEAD = "claim,text,paper,ours,low,high,repeats,unit,backend,device,verdict,reason,study,profile,revision"
SHAPE = "M4,smooth,shape,16.7,16.1,17.2,5,×,cpu,Old,reproduced in direction,Why. rises: yes; smoothly: no.,12_x,default,abc"
OLD = "E3,groups,10×,1.5,1.25,1.75,5,×,cpu,Old,reproduced in direction,why,03_x,default,abc"
IDLE = "E4,decode,3×,,,,,,cpu,Old,not run here,why,,,"
MODELLED = "E1,rates,4×,2.5,2.5,2.5,1,×,sim,RTX,modelled only,why,09_x,default,def"


@pytest.fixture
def keep(tmp_path, monkeypatch):
    """A checkout that keeps no run: returns a function that keeps one of a device with the given rows."""
    monkeypatch.setattr(book, "ROOT", tmp_path / "checkout")

    def make(device, backend, *rows, head=HEAD):
        folder = tmp_path / "checkout" / "data" / "recorded" / device.lower()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "claims.csv").write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
        (folder / "run.json").write_text(json.dumps({"backend": backend, "device": device}), encoding="utf-8")
        return folder

    return make


@pytest.fixture
def write(tmp_path):
    """Returns a function that writes the report of a run with the given claims, (id, ratio) each, and returns its folder and page."""

    def make(*claims, backend="cpu"):
        out = tmp_path / "out"
        for folder in ("state", "results"):
            (out / folder).mkdir(parents=True, exist_ok=True)
        state = {"seconds": 1.0, "profile": "default", "revision": "new", "error": ""}
        (out / "state" / "01_x.json").write_text(json.dumps(state), encoding="utf-8")
        entries = [
            {"id": name, "ours": {"median": ratio, "low": ratio, "high": ratio, "repeats": 3}, "unit": CLAIMS[name].unit, "backend": backend,
             "device": machine.device(backend), "verdict": "reproduced", "reason": "why"} for name, ratio in claims
        ]  # fmt: skip
        (out / "results" / "01_x.json").write_text(
            json.dumps({"claims": entries, "figures": [], "not run": {}, "engine": {}}), encoding="utf-8"
        )
        (out / "results" / "01_x.csv").write_text("study\n01_x\n", encoding="utf-8")
        report.write_report(out, backend)
        return out, unescape((out / "report.html").read_text(encoding="utf-8"))

    return make


def test_kept_runs_are_one_table_of_what_was_tested(keep):
    keep("Old", "cpu", OLD, IDLE)
    keep("Modelled", "sim", MODELLED)
    kept = recorded.load()
    assert list(kept.columns) == recorded.COLUMNS
    assert kept[["run", "run_backend", "run_device", "claim"]].to_numpy().tolist() == [
        ["modelled", "sim", "Modelled", "E1"],
        ["old", "cpu", "Old", "E3"],
    ]
    assert kept[["ours", "low", "high"]].to_numpy().tolist() == [[2.5, 2.5, 2.5], [1.5, 1.25, 1.75]] and list(kept["repeats"]) == [1, 5]


def test_a_claim_about_a_shape_is_told_by_its_parts(keep, write):
    """A run from before they had a column tells them in its reasons; what is no shape is told by its number even so."""
    keep("Old", "cpu", SHAPE, OLD.replace("why", "less: yes; more: no."))
    kept = recorded.load()
    assert list(kept["parts"]) == ["1 of 2", ""]
    assert [recorded.number(row) for row in kept.itertuples()] == ["1 of 2 parts", "1.50 × [1.25, 1.75]"]
    keep("Old", "cpu", SHAPE + ",3 of 4", head=HEAD + ",parts")
    assert list(recorded.load()["parts"]) == ["3 of 4"]
    _, page = write(("E3", 2.0))
    assert "Recorded: Old (measured, abc): 3 of 4 parts, reproduced in direction<" in page


def test_the_report_tells_a_shape_by_its_parts(tmp_path, capsys):
    for folder in ("state", "results"):
        (tmp_path / folder).mkdir()
    study = Study("12_what_is_shared", None, tmp_path)
    said = study.claim("M4", Ratio(16.7, 16.1, 17.2, 5), "Why.", {"rises": True, "smoothly": False})
    assert said == (
        "M4: paper shape, here 1 of 2 parts: reproduced in direction. Why. rises: yes; smoothly: no. The ratio: 16.70 × [16.10, 17.20], n = 5."
    )
    state = {"seconds": 1.0, "profile": "default", "revision": "new", "error": ""}
    (tmp_path / "state" / "12_what_is_shared.json").write_text(json.dumps(state), encoding="utf-8")
    report.write_report(tmp_path, "cpu")
    table = recorded.read(tmp_path / "claims.csv")
    assert list(table.columns) == recorded.CLAIM_COLUMNS and list(table.columns)[-1] == "parts"
    assert dict(zip(table["claim"], table["parts"]))["M4"] == "1 of 2" and set(table["parts"]) == {"", "1 of 2"}
    assert "1 of 2 parts <br>n = 5, cpu" in (tmp_path / "report.html").read_text(encoding="utf-8")
    report.print_claims(tmp_path)
    assert "M4    shape                 1 of 2 parts                  cpu      reproduced in direction" in capsys.readouterr().out


def test_the_verdicts_that_are_kept_are_those_of_the_rule():
    """A claim's parts are not kept: they can only take "reproduced" down to "in direction"."""
    kept = recorded.load()
    for row in kept[kept["claim"].map(lambda name: CLAIMS[name].factor is not None)].itertuples():
        ruled = verdict(row.claim, Ratio(row.ours, row.low, row.high, row.repeats), row.backend)
        assert row.verdict in {ruled, {"reproduced": "reproduced in direction"}.get(ruled, ruled)}, f"{row.run}, {row.claim}"


def test_only_the_run_of_that_device_and_backend_is_left_out(keep):
    keep("Old", "cpu", OLD)
    keep("New", "cpu", OLD)
    assert list(recorded.load(leave_out=("cpu", "New"))["run"]) == ["old"]
    assert len(recorded.load(leave_out=("gpu", "New"))) == 2


def test_nothing_kept_is_an_empty_table(keep):
    assert list(recorded.load().columns) == recorded.COLUMNS and recorded.load().empty


def test_a_run_from_before_repeats_were_told_is_read_and_benchmarks_alone_are_skipped(keep):
    folder = keep("Old", "cpu", OLD.replace(",5,×", ",×"), head=HEAD.replace("repeats,", ""))
    (folder.with_name("gpu") / "benchmarks").mkdir(parents=True)
    (row,) = recorded.load().itertuples()
    assert (row.ours, row.unit) == (1.5, "×") and row.repeats is pd.NA


@pytest.mark.parametrize(
    "change, message",
    [
        (("1.5,", "fast,"), "claims.csv has 'fast' as 'ours' of E3, which is not a number; restore the file from git"),
        (("1.25,", ","), "claims.csv has '' as 'low' of E3"),
        ((",5,×", ",many,×"), "claims.csv has 'many' as 'repeats' of E3"),
        ((",5,×", ",5.5,×"), "claims.csv has '5.5' as 'repeats' of E3"),
        ((",verdict,", ",judgement,"), "claims.csv lacks the columns verdict; restore"),
        (("reproduced in direction", "perhaps"), "claims.csv has the verdict 'perhaps', not one of: reproduced,"),
        ((OLD, OLD + ",a,b\n,,,,,,,,,,,,,,,,,,"), "claims.csv is not a table"),
    ],
)
def test_a_broken_table_is_one_line_that_names_the_file_the_value_and_the_mend(keep, change, message):
    path = keep("Old", "cpu", OLD) / "claims.csv"
    path.write_text(path.read_text(encoding="utf-8").replace(*change), encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        recorded.load()
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "is missing beside claims.csv"),
        ("{", "is not a run's description"),
        ('{"backend": "cpu"}', "has no 'device'"),
        ("[]", "is not a run"),
    ],
)
def test_a_broken_description_of_a_run_is_one_line_likewise(keep, text, message):
    path = keep("Old", "cpu", OLD) / "run.json"
    path.unlink() if text is None else path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        recorded.load()


def test_an_empty_table_is_refused(keep):
    (keep("Old", "cpu", OLD) / "claims.csv").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match="is not a table"):
        recorded.load()


def test_a_reference_that_is_not_kept_is_refused(keep, tmp_path):
    folder = keep("Old", "cpu", OLD)
    with pytest.raises(ValueError, match="reference names ''"):
        recorded.reference(book.ROOT)
    recorded.keep_as_reference("older", book.ROOT)
    with pytest.raises(ValueError, match="reference names 'older', which is not a kept run"):
        recorded.reference(book.ROOT)
    recorded.keep_as_reference(folder.name, book.ROOT)
    assert recorded.reference(book.ROOT) == "old"


def test_the_report_shows_what_other_devices_gave_under_each_claim_run_here_or_not(keep, write):
    keep("Old", "cpu", OLD)
    keep("Modelled", "sim", MODELLED, MODELLED.replace("2.5,2.5,2.5", "120,100,140").replace("RTX", "H200").replace("09_x", "16_x"))
    keep(machine.device("cpu"), "cpu", OLD.replace("1.5,", "9.75,"))
    _, page = write(("E3", 2.0), ("E3", 3.0))
    assert page.count("Recorded: Old (measured, abc): 1.50 × [1.25, 1.75], reproduced in direction<") == 1, "once a claim"
    assert "Recorded: RTX (modelled, def, 09_x): 2.50 ×<" in page and "Recorded: H200 (modelled, def, 16_x): 120 × [100, 140]<" in page
    assert "9.75" not in page, "this device's own earlier run"
    row = page.split("<td>E1</td>")[1].split("</tr>")[0]
    assert row.count("Recorded: ") == 2 and "not run here" in row


def test_a_broken_record_costs_a_run_no_report(keep, write):
    (keep("Old", "cpu", OLD) / "run.json").write_text("{", encoding="utf-8")
    out, page = write(("E3", 2.0))
    assert "What was recorded on other devices is not shown: " in page and "old/run.json is not a run's description" in page
    assert "Recorded: " not in page and (out / "figures" / "claims.png").exists()


def test_a_run_without_a_ratio_has_no_picture_and_keeps_none_from_before(keep, write):
    keep("Old", "cpu", OLD)
    out, page = write(("E3", 2.0))
    pictures = [out / "figures" / f"claims.{suffix}" for suffix in ("png", "pdf")]
    assert all(path.stat().st_size for path in pictures) and "The paper's claims about ratios at a glance" in page
    _, page = write(("M7", 0.6), ("E9", 0.8))  # a share, and a claim without a factor
    assert not any(path.exists() for path in pictures) and "at a glance" not in page


def test_the_picture_is_told_to_those_who_do_not_see_it(keep, write):
    keep("Old", "cpu", OLD)
    keep("Modelled", "sim", MODELLED)
    _, page = write(("E3", 2.0), ("E5", 3000.0))
    alt = re.search(r'alt="([^"]*)"', page)[1]
    assert f"This run: {machine.device('cpu')}, measured: E3 2.00×, E5 3000×." in alt
    assert "Recorded: Old, measured: E3 1.50×." in alt and "Recorded: modelled GPU, not measured: E1 2.50×." in alt


def drawn():
    """The picture of a run on "Here" with one ratio beside the kept runs, and its sources."""
    here = pd.DataFrame([OLD.replace("Old", "Here").split(",")], columns=HEAD.split(","))
    run = {"backend": "cpu", "device": "Here", "profiles": ["default"], "revisions": ["new"], "machine": {}}
    found = overview.sources(overview.ratios(here), overview.ratios(recorded.load()), run)
    return overview.draw(found, run), found


def test_every_source_has_its_colour_and_marker_and_modelled_ones_are_hollow(keep):
    keep("Old", "cpu", OLD)
    keep("Modelled", "sim", MODELLED)
    figure, found = drawn()
    assert [source.label for source in found] == [
        "this run: Here, measured", "recorded: Old, measured", "recorded: modelled GPU, not measured",
    ]  # fmt: skip
    assert len({source.colour for source in found}) == len({source.marker for source in found}) == 3
    marks = {str(line.get_marker()): line.get_markerfacecolor() for axes in figure.axes for line in axes.lines}
    assert [marks[source.marker] == "white" for source in found] == [False, False, True]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["the paper", *(source.label for source in found)]
    assert any(text.get_text().replace("\u00a0", " ") == "measured on a CPU: Here · no vLLM · Feather new" for text in figure.texts)


def test_claims_stand_in_the_papers_order_with_every_row_of_a_source(keep):
    keep("Modelled", "sim", MODELLED, MODELLED.replace("RTX", "H200"))
    figure, found = drawn()
    placed = overview.slots(found)
    assert [slot.claim for slot in placed if slot.row is None] == [name for name in CLAIMS if name in overview.compared()]
    assert [(slot.row.device, slot.note) for slot in placed if slot.row and slot.claim == "E1"] == [("RTX", " RTX"), ("H200", " H200")]
    assert all(before.y < after.y for before, after in zip(placed, placed[1:]))
    bottom, top = figure.axes[0].get_ylim()
    assert bottom > placed[-1].y > placed[0].y > top, "the first is at the top"


def test_every_compared_claim_has_a_short_name():
    assert set(overview.compared()) == {claim.id for claim in CLAIMS.values() if claim.short}


@pytest.mark.parametrize(
    "values, parts",
    [([1.0], 1), ([0.5, 2, 10, 22], 1), ([1, 10, 22, 1000, 3600], 2), ([0.01, 1, 2, 10], 1)],
)
def test_the_axis_holds_every_number_and_is_broken_only_before_large_ones(values, parts):
    spans = overview.spans(values)
    assert len(spans) == parts
    assert all(any(low < value < high for low, high in spans) for value in values)


@pytest.mark.parametrize(
    "launch, cascade", [("eager", "off"), ("eager", "on"), ("compiled, CUDA graphs", "off"), ("compiled, CUDA graphs", "on")]
)
def test_the_gpu_report_says_of_m1_what_its_rows_say(launch, cascade):
    folder = book.ROOT / "data" / "recorded" / "nvidia-h200-143771-mib-580-159-04"
    rows = frame(read(folder / "gpu_studies.csv.gz").to_dict("records"))
    rows = rows[(rows["study"] == "01_prefix_homogeneity") & (rows["launch"] == launch) & (rows["cascade"] == (cascade == "on"))]
    assert rows["kernel"].isna().all(), "kept before there was such a column"
    found = compare(rows, "decode throughput", of={"divergent": 0}, to={"divergent": 1, "rows": "shuffled"})
    named = {"eager": "eager", "compiled, CUDA graphs": "compiled + graphs"}[launch]
    told = f"{found.median:.2f} [{found.low:.2f}, {found.high:.2f}]"
    report = (folder / "REPORT.md").read_text(encoding="utf-8").replace("**", "")
    assert f"| {named} | {cascade} | {told} |" in report
    if (named, cascade) == ("compiled + graphs", "on"):
        assert f"costs a factor of {found.median:.1f} with cascade attention" in (book.ROOT / "README.md").read_text(encoding="utf-8")


H100 = book.ROOT / "data" / "recorded" / "nvidia-h100-80gb-hbm3-81559-mib-580-159-04"


def test_the_h100_report_says_what_its_rows_say():
    def rows(name):
        return frame(read(H100 / f"{name}.csv.gz").to_dict("records"))

    def told(found):
        return f"{found.median:.2f} [{found.low:.2f}, {found.high:.2f}]"

    report = (H100 / "REPORT.md").read_text(encoding="utf-8").replace("**", "")
    strangers = rows("one_stranger")
    for kernel in ("paged", "cascade"):
        found = compare(strangers[strangers["kernel"] == kernel], "decode throughput", of={"divergent": 0}, to={"divergent": 1})
        assert f"| M1, {kernel}" in report and f"| {kernel} | {told(found)} |" in report
    order = rows("steady_order")
    order = order[(order["policy"] == "FCFS") & (order["metric"] == "decode step")]
    steps = order[order["engine start"] == "first"].set_index(["groups", "rows"])["value"]
    for groups in (8, 16):
        ratio = steps[groups, "prefix"] / steps[groups, "engine"]
        assert f"{groups} groups: " in report and f"{steps[groups, 'engine']:.1f} |" in report and f"| {ratio:.2f} | 1 |" in report
    assert set(order[order["engine start"] == "second"]["rows"]) == {"prefix"}, "no step without prefill in the other's window"
    for heads, groups in (("llama", 10), ("longchat", 1)):
        kernel = rows(f"decode_attention-{heads}")
        kernel = kernel[kernel["curve"] == "groups"]
        at = {"groups": groups}
        found = compare(kernel, "attention time", of={**at, "policy": "paged", "order": "grouped"}, to={**at, "policy": "packed"})
        assert f"paged over packed, time | {told(found)} | {found.repeats} |" in report
    attention = rows("engine_attention-llama")
    attention = attention[attention["implementation"].str.startswith("FlashAttention") & (attention["curve"] == "groups")]
    found = compare(attention, "attention time", of={"groups": 10, "order": "round-robin"}, to={"groups": 10, "order": "grouped"})
    assert f"round-robin over grouped rows, time | {told(found)} | {found.repeats} |" in report
