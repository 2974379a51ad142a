"""Data sets of questions about long documents: L-Eval and LongBench. What requests share is the document."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lab.workloads.arrivals import arrivals
from lab.workloads.lines import Wrong, read_json
from lab.workloads.text import encode
from lab.workloads.workload import FIRST_TOKEN, VOCABULARY, Prompt, Workload


@dataclass
class Document:
    """A text and what is asked about it; ``answers[i]`` is the reference answer to ``questions[i]``."""

    text: str
    questions: list[str]
    answers: list[str]


class Documents(list[Document]):
    """Documents in their order, no two with the same text. ``note``: what of their files is not among them."""

    def __init__(self, documents: Iterable[Document] = (), note: str = ""):
        super().__init__(documents)
        self.note = note


def read_leval(path: Path) -> Documents:
    """A task of L-Eval (arXiv 2307.11088): a document a line, with its questions and answers. Lines with the same text, as the
    published files have them, become one document. Raises DataError."""
    records = read_json(path, {"input": str, "instructions": list, "outputs": list}, _of_leval)
    return gathered(records.made, records.note)


def read_longbench(path: Path) -> Documents:
    """A task of LongBench (arXiv 2308.14508): a question a line. Lines with the same context become one document. Raises
    DataError."""
    records = read_json(path, {"context": str, "input": str, "answers": list}, _of_longbench)
    return gathered(records.made, records.note)


def _of_leval(record: dict) -> Document:
    document = Document(record["input"], record["instructions"], record["outputs"])
    if not document.text.strip():
        raise Wrong("the document ('input') is empty", "lines with an empty document")
    if not document.questions or len(document.questions) != len(document.answers):
        counts = f"{len(document.questions)} 'instructions' and {len(document.answers)} 'outputs'"
        raise Wrong(f"{counts}: one answer a question is expected", "lines without one answer a question")
    for name in ("instructions", "outputs"):
        if not all(isinstance(text, str) for text in record[name]):
            raise Wrong(f"{name!r} holds something that is no text", f"lines in which {name!r} holds something that is no text")
    return document


def _of_longbench(record: dict) -> Document:
    if not record["context"].strip():
        raise Wrong("the document ('context') is empty", "lines with an empty document")
    if not record["answers"] or not isinstance(record["answers"][0], str):
        raise Wrong("'answers' holds no text", "lines in which 'answers' holds no text")
    return Document(record["context"], [record["input"]], record["answers"][:1])


def gathered(documents: Iterable[Document], note: str) -> Documents:
    """One document for each text, with every question once: asked twice, it would find itself in the prefix cache. ``note``: what of
    their files is missing already."""
    found: dict[str, Document] = {}
    again = 0
    for one in documents:
        document = found.setdefault(one.text, Document(one.text, [], []))
        for question, answer in zip(one.questions, one.answers):
            if question in document.questions:
                again += 1
            else:
                document.questions.append(question)
                document.answers.append(answer)
    left_out = f"{again} questions that were asked before of the same document, left out" if again else ""
    return Documents(found.values(), "; ".join(filter(None, (note, left_out))))


class Reading:
    """Documents as tokens, cut to budgets. ``prefixes`` are the documents, for ``Engine.warm``.

    ``document_tokens`` and ``question_tokens`` are the most that is kept, from the beginning; ``decode_tokens`` (least, most)
    bounds an answer, which is as long as the reference answer otherwise. Raises ValueError without a document."""

    def __init__(self, documents: Sequence[Document], document_tokens: int, question_tokens: int, decode_tokens: tuple[int, int]):
        if not documents:
            raise ValueError("a reading needs at least one document")
        whole = [encode(document.text) for document in documents]
        self.prefixes = [tokens[:document_tokens] for tokens in whole]
        self._asked = [
            (group, encode(question)[:question_tokens], int(np.clip(len(encode(answer)), *decode_tokens)))
            for group, document in enumerate(documents)
            for question, answer in zip(document.questions, document.answers)
        ]
        lengths, cut = [len(tokens) for tokens in whole], sum(len(tokens) > document_tokens for tokens in whole)
        self._note = (
            f"questions on {len(whole)} documents of {min(lengths)} to {max(lengths)} tokens, cut to their first "
            f"{document_tokens} ({cut} of them longer), questions to {question_tokens}; answers as long as the reference, but "
            f"{decode_tokens[0]} to {decode_tokens[1]} tokens" + (f"; {note}" if (note := getattr(documents, "note", "")) else "")
        )

    def workload(self, seed: int, salt: int = 0, requests: int | None = None, requests_per_s: float | None = None) -> Workload:
        """Questions in an order shuffled by ``seed``, the first ``requests`` of them; all there at the start, or as a Poisson
        process. The documents are in the prefix cache.

        Between document and question stands one token drawn from ``seed`` and ``salt``: the same questions are asked again in
        every run, and must not find themselves in the prefix cache."""
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(self._asked))[:requests]
        times = arrivals(rng, len(order), requests_per_s)
        mark = int(np.random.default_rng([seed, salt]).integers(FIRST_TOKEN, VOCABULARY))
        prompts = []
        for place, time in zip(order, times):
            group, question, answer = self._asked[place]
            prompts.append(Prompt([*self.prefixes[group], mark, *question], group, answer, float(time)))
        return Workload(prompts, note=f"{len(prompts)} of {len(self._asked)} {self._note}")
