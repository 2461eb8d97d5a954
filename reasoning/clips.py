"""A clip: one recording, who spoke, and how its listeners voted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral
from typing import Literal

from reasoning.emotions import EmotionSet
from reasoning.errors import RowError

Split = Literal["train", "dev", "test"]


@dataclass(frozen=True)
class Clip:
    """One row of a corpus.

    audio: path relative to the corpus root. duration_s: seconds. votes: whole votes in the order of the corpus's
    EmotionSet. intended: what the speaker was asked to express, never a target. source: "human" or "synthetic".
    parent_id: the clip that this one was resynthesized from. extra: corpus-specific columns.
    """

    id: str
    audio: str
    duration_s: float
    transcript: str | None
    language: str
    speaker: str
    sex: str | None
    age: int | None
    split: str
    fold: int
    votes: tuple[int, ...]
    n_votes: int
    intended: str | None
    source: str
    synthesizer: str | None = None
    parent_id: str | None = None
    extra: Mapping[str, str | int | float | None] = field(default_factory=dict)

    def check(self, emotions: EmotionSet) -> None:
        """Raise RowError, naming the field, unless the row keeps the contract for `emotions`."""
        if not self.id:
            raise RowError("is empty", row="?", field="id")
        for name in ("audio", "speaker", "language"):
            if not getattr(self, name):
                raise RowError("is empty", row=self.id, field=name)
        if not 0 < self.duration_s < math.inf:
            raise RowError(f"is {self.duration_s} s, expected more than 0 and finite", row=self.id, field="duration_s")
        if self.split not in ("train", "dev", "test"):
            raise RowError(f"is {self.split!r}, expected train, dev or test", row=self.id, field="split")
        if self.source not in ("human", "synthetic"):
            raise RowError(f"is {self.source!r}, expected human or synthetic", row=self.id, field="source")
        if len(self.votes) != len(emotions):
            raise RowError(f"has {len(self.votes)} counts for {len(emotions)} emotions", row=self.id, field="votes")
        if any(not isinstance(v, Integral) or v < 0 for v in self.votes):
            raise RowError(f"{list(self.votes)} are not counts of 0 or more", row=self.id, field="votes")
        if self.n_votes <= 0:
            raise RowError("nobody voted on this clip; it has no truth to learn", row=self.id, field="n_votes")
        if sum(self.votes) != self.n_votes:
            raise RowError(f"sum to {sum(self.votes)} but n_votes is {self.n_votes}", row=self.id, field="votes")
