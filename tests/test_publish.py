"""What the pages say is what the recorded run found."""

import json
from pathlib import Path

import pandas as pd
import pytest

from feather.artifact.publish import claims_table, fill, publish

ROOT = Path(__file__).parents[1]


def test_the_pages_hold_the_recorded_claims():
    recorded = sorted((ROOT / "data" / "recorded").glob("*-cores-*/claims.csv"))
    assert recorded, "no reference run of a CPU is kept"
    table = claims_table(pd.read_csv(recorded[-1], keep_default_na=False))
    for page in ("README.md", "artifact.md"):
        assert f"<!-- claims -->\n{table}\n<!-- /claims -->" in (ROOT / page).read_text()


def test_a_table_that_no_page_has_a_place_for_is_refused_before_anything_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("feather.artifact.publish.ROOT", tmp_path)
    for page in ("README.md", "artifact.md"):
        (tmp_path / page).write_text("<!-- claims -->\n<!-- /claims -->\n")
    run = {"profiles": ["default"], "failed": [], "revisions": ["abc"], "device": "d", "backend": "cpu", "seconds": {"00": 1}}
    (tmp_path / "run.json").write_text(json.dumps(run))
    (tmp_path / "claims.csv").write_text("claim,text,paper,ours,low,high,unit,verdict,reason\n")
    with pytest.raises(ValueError, match="no page has a place for the table of the times"):
        publish(tmp_path)
    assert not (tmp_path / "data").exists()


def test_filling_replaces_what_stands_between_the_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- claims -->\nold\nolder\n<!-- /claims -->\nb\n")
    fill(page, {"claims": "new", "times": "absent"})
    assert page.read_text() == "a\n<!-- claims -->\nnew\n<!-- /claims -->\nb\n"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"profiles": ["default", "smoke"]}, "profiles"),
        ({"failed": ["03_end_to_end"]}, "failed notebooks: 03_end_to_end"),
        ({"revisions": ["abc", "def"]}, "must be one revision"),
        ({"revisions": ["abc+"]}, "without local changes"),
    ],
)
def test_what_nobody_could_rerun_is_not_kept(tmp_path, change, message):
    good = {"profiles": ["default"], "failed": [], "revisions": ["abc"], "device": "d"}
    (tmp_path / "run.json").write_text(json.dumps({**good, **change}))
    with pytest.raises(ValueError, match=message):
        publish(tmp_path)
