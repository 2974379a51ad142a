"""Small files in the form of the real data sets, made from a seed: for tests, and where there is no real data."""

import json
from pathlib import Path

import numpy as np

_SYLLABLES = ("ba", "ce", "di", "fo", "gu", "ha", "le", "mi", "no", "pu", "ra", "se", "ti", "vo", "wy", "zan")


def write(folder: Path, documents: int = 4, questions: int = 8, words: int = 400, requests: int = 60, seed: int = 0) -> Path:
    """Write one file of each data set into ``folder``, with ``documents`` texts of about ``words`` words, ``questions`` questions
    on each, and ``requests`` requests in each trace. Returns ``folder``."""
    rng = np.random.default_rng(seed)
    leval, longbench = [], []
    for _ in range(documents):
        text = _words(rng, words)
        asked, answers = [_words(rng, 8) + "?" for _ in range(questions)], [_words(rng, 12) for _ in range(questions)]
        leval.append({"instructions": asked, "outputs": answers, "input": text, "source": "made", "evaluation": "none"})
        longbench += [{"input": question, "context": text, "answers": [answer]} for question, answer in zip(asked, answers)]
    _lines(folder / "leval" / "made.jsonl", leval)
    _lines(folder / "longbench" / "made.jsonl", longbench)
    _lines(folder / "mooncake" / "made.jsonl", _conversations(rng, requests))
    rows = ["Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"]
    for time in np.cumsum(rng.gamma(0.25, 8.0, requests)).astype(int):
        asked, answered = int(rng.integers(20, 900)), int(rng.integers(0, 400))
        rows.append(f"{time},made,{asked},{answered},{asked + answered},API log")
    (folder / "burstgpt").mkdir(parents=True, exist_ok=True)
    (folder / "burstgpt" / "made.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def _words(rng: np.random.Generator, count: int) -> str:
    return " ".join("".join(rng.choice(_SYLLABLES, rng.integers(1, 4))) for _ in range(count))


def _conversations(rng: np.random.Generator, requests: int) -> list[dict]:
    """A system prompt of one block for all; each conversation grows by its own blocks from turn to turn."""
    found: list[dict] = []
    talks: list[list[int]] = []
    fresh = 1
    for time in np.cumsum(rng.exponential(300.0, requests)).astype(int):
        if not talks or rng.random() < 0.4:
            talks.append([0])
        talk = talks[rng.integers(len(talks))]
        grown = int(rng.integers(1, 6))
        talk += range(fresh, fresh + grown)
        fresh += grown
        tokens = 512 * len(talk) - int(rng.integers(0, 512))
        found.append({"timestamp": int(time), "input_length": tokens, "output_length": int(rng.integers(50, 600)), "hash_ids": list(talk)})
    return found


def _lines(path: Path, records: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
