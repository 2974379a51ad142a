"""The record of one request, from an engine's queue to the tree."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Request:
    """What Feather knows of a request. One record is passed along by ``Admission``, ``BatchFormer`` and ``ChunkedHashTree``; only they
    change it after it was inserted.

    The three have the same operations, those of the paper's tree, and call them alike: ``insert`` (a record), and by the record's
    id ``add_to_batch``, ``finish``, ``preempt`` and ``remove``.
    """

    id: Hashable
    path: Sequence[Hashable]
    """cumulative hashes of its prompt's chunks, shallowest first (see ``feather.hashing``); empty for a prompt shorter than a chunk"""
    priority: int = 0
    """the least number goes first; only ``Admission`` looks at it"""
    arrival: int | None = None
    """0 for the first request that came, and so on. Given at the first ``insert`` and kept: a request that is removed and inserted
    again has its old place in the order of arrival"""
    since: float | None = None
    """when it began to wait, on the former's clock, seconds; anew after each preemption"""
    came: int | None = None
    """the same among all of an engine's requests, offered to the former or not; given and kept by ``Admission``"""
    preempted: bool = False
    """whether it has run and waits again"""
