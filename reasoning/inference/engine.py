"""What evaluation may ask of a model, whoever runs it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

PREFIX = {"no_think": "no_think", "think": "own_think"}
"""Prompt level -> what stands before the label readout."""


@dataclass(frozen=True)
class Request:
    """One clip to be asked about. audio: a file, samples at 16 kHz, or None for the text-only control.

    written: what the model wrote when asked this, greedily; at level think its label readout stands on the thinking in
    it.
    """

    id: str
    audio: Path | np.ndarray | None
    transcript: str | None
    level: str = "no_think"
    written: str | None = None


@dataclass(frozen=True)
class Generation:
    """What the model wrote. tokens: how many. truncated: stopped by max_new_tokens before the end-of-turn token."""

    id: str
    text: str
    tokens: int
    truncated: bool


@dataclass(frozen=True)
class LabelScores:
    """The label readout (K,) in EmotionSet order. prefix: no_think, own_think, or
    label_teacher_forced for thinking that was given (never a result). forced: own thinking had no end."""

    id: str
    probabilities: tuple[float, ...]
    prefix: str
    forced: bool = False


class Engine(Protocol):
    """Streams answers in the order of the requests, so that a caller can save each one as it comes."""

    name: str

    def generate(
        self,
        requests: Sequence[Request],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        guided: bool = False,
        samples: int = 1,
    ) -> Iterator[Generation]:
        """`samples` texts for each request, one after another; temperature 0 is greedy, for one sample only.

        guided: the answer grammar lets nothing else be written.
        """
        ...

    def score_labels(self, requests: Sequence[Request]) -> Iterator[LabelScores]:
        """The label readout for each request: softmax over the labels right after the answer prefix, and at level think
        after the thinking in what the model wrote."""
        ...
