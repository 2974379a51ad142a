"""What verified drafts do to the value of a homogeneous batch: ``python -m benchmarks.drafts [--json] [--out FOLDER]``.

The real engine, n-gram drafts of three tokens, one full batch of one prefix and of eight, interleaved, transient. The model's weights are random,
and greedy text of such a model repeats itself, so far more drafts are accepted than of real text.
"""

import tempfile

from benchmarks.timing import main
from lab.engines.real import RealEngine
from lab.figures.charts import style
from lab.studies import drafts
from lab.studies.study import Study

DRAFTS, GROUPS, PREFIX, DECODE = 3, 8, 8000, 48


def run(out: str | None, repeats: int) -> dict:
    style()
    engine = RealEngine("cpu", max_batch=32, drafts=DRAFTS)
    study = Study("drafts", engine, out or tempfile.mkdtemp())
    table = drafts.measure(study, engine, PREFIX, GROUPS, DECODE, repeats)
    finding = drafts.finding(table)
    setting = f"One full batch of {engine.max_batch} requests on prefixes of {PREFIX:,} tokens, {DECODE} tokens decoded, transient"
    study.figure(
        drafts.figure(table), "drafts", finding, setting, "Throughput over the number of prefixes, with verified n-gram drafts and without."
    )
    told = table[table["metric"].isin(["throughput", "decode step", "tokens per row"])]
    medians = told.groupby(["metric", "groups", "drafts"])["value"].median()
    found = drafts.value(table)
    return {
        "device": engine.device_name,
        "finding": finding,
        "one prefix over several": {"no drafts": found.plain._asdict(), "drafts": found.drafted._asdict()},
        "medians": {", ".join(map(str, key)): round(float(value), 2) for key, value in medians.items()},
        "figure": str(study.out / "figures" / "drafts.png") if out else None,
    }


def show(found: dict) -> None:
    print(found["finding"])
    for name, median in found["medians"].items():
        print(f"  {name}: {median}")


if __name__ == "__main__":
    main("benchmarks.drafts", __doc__.splitlines()[0], run, show,
         out={"default": None, "help": "folder that keeps the rows and the figure"},
         repeats={"type": int, "default": 5, "help": "interleaved repeats"})  # fmt: skip
