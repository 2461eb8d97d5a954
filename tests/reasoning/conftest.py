"""Fixtures of the tests of training and evaluation at level think."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from reasoning.clips import Clip
from reasoning.verifier import Trace, write_trace

THINKING_STEPS = 240
CLAIMS = ("very high pitch", "low pitch", "high pitch", "fast pace", "slow pace", "falling pitch slope")
"""What the tones of each emotion are said to be; which tones these are only the sound tells."""


def thinking_of(clip: Clip) -> str:
    """A trace of a tone: its claim depends on what is heard, its emotions on nothing."""
    claim = CLAIMS[int(np.argmax(clip.votes))]
    return write_trace(Trace("plain", claim, "fear and sad", f"{claim} suits fear and sad"))


@dataclass(frozen=True)
class ThinkingCheckpoint:
    """model: a small Qwen2-Audio that learned to think and answer about `corpus` from its sound. traces: clip id ->
    what it was taught to think, one for every clip."""

    model: Path
    corpus: Path
    traces: dict[str, str]


@pytest.fixture(scope="session")
def thinking_checkpoint(tmp_path_factory, trained_checkpoint, teach) -> ThinkingCheckpoint:
    """The trained checkpoint after it learned to think before it answers."""
    from data_builders.rows import read_corpus

    model, corpus = tmp_path_factory.mktemp("thinking"), trained_checkpoint.corpus
    teach(trained_checkpoint.model, corpus, model, steps=THINKING_STEPS, thinking=thinking_of, last_rate=0.05)
    return ThinkingCheckpoint(model, corpus, {c.id: thinking_of(c) for c in read_corpus(corpus).clips})
