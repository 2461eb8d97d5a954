"""A small evaluation: three speakers, nine clips with sound, one model with both readouts, a control, two baselines."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from reasoning.emotions import CREMA_D
from reasoning.evaluation.predictions import Prediction
from reasoning.evaluation.record import RunRecord
from reasoning.evaluation.score import score
from reasoning.response import read_response, write_response

VOTES = (
    (6, 1, 1, 0, 2, 0), (0, 0, 0, 9, 1, 0), (0, 0, 2, 0, 4, 4), (0, 0, 0, 0, 10, 0), (1, 2, 3, 0, 2, 2),
    (0, 5, 0, 0, 5, 0), (2, 0, 0, 6, 2, 0), (0, 0, 1, 0, 1, 8), (3, 3, 3, 0, 0, 1),
)  # fmt: skip
PRIOR = (0.13, 0.12, 0.11, 0.17, 0.3, 0.17)

RECORD = RunRecord(
    system="sft", corpus="tones", statement="sine tones, votes of a test", rater_task="none", corpus_fingerprint="f0",
    audio_root=".", emotions=CREMA_D.to_dict(), fold=0, folds=5, n_train=30, n_dev=3, n_test=9, limit=None,
    model="models/seed", model_fingerprint="m0", adapter=None, adapter_fingerprint=None, engine="transformers",
    level="no_think", prompt_fingerprint="p0", max_new_tokens=96, seed=0, shuffled=None,
    fitted={"dirichlet_alpha": [1.0] * 6},
)  # fmt: skip


@dataclass
class Material:
    """What `write_report` is given."""

    scores: dict[str, Any]
    predictions: list[dict[str, Any]]
    root: Path


def lines() -> list[Prediction]:
    """Answers near the votes, with one verbalized answer that breaks off; the control answers with the prior."""
    found = []
    for i, votes in enumerate(VOTES):
        near = tuple((0.7 * v / sum(votes) + 0.3 * p) for v, p in zip(votes, PRIOR, strict=True))
        text = write_response(near, "neutral", CREMA_D)
        text = text.removesuffix("</answer>") if i == 4 else text
        reading = read_response(text, CREMA_D)
        base = Prediction(
            system="sft", readout="label", prefix="no_think", control="none", split="test", id=f"clip{i}",
            speaker=f"speaker{i % 3}", fold=0, transcript=f"sentence {i}", votes=votes, probabilities=near,
            vote="neutral", problems=(), text=None, audio=f"tone{i}.wav",
        )  # fmt: skip
        dev = replace(base, split="dev", id=f"dev{i}", speaker="dev speaker", audio="gone.wav")
        verbalized = replace(
            base, readout="verbalized", prefix=None, probabilities=reading.probabilities, vote=reading.vote,
            problems=reading.problems, text=text,
        )  # fmt: skip
        control = replace(base, control="shuffled", probabilities=PRIOR)
        prior = replace(base, system="training_prior", readout="none", prefix=None, probabilities=PRIOR, audio=None)
        uniform = replace(prior, system="uniform", probabilities=(1 / 6,) * 6)
        found += [uniform, prior, replace(prior, split="dev", id=dev.id), dev, base, verbalized, control]
    return found


def scored(predictions: list[Prediction], **record: Any) -> str:
    """scores.json as text."""
    return json.dumps(score(predictions, [replace(RECORD, **record)]), allow_nan=False)


@pytest.fixture(scope="session")
def usual_scores() -> str:
    return scored(lines())


@pytest.fixture
def make_material(tmp_path, usual_scores) -> Callable[..., Material]:
    """make_material(change=..., other=..., **record) -> Material.

    change maps each Prediction (None drops it), other replaces them all; record changes the RunRecord.
    """

    def make(
        change: Callable[[Prediction], Prediction | None] = lambda line: line,
        other: list[Prediction] | None = None,
        **record: Any,
    ) -> Material:
        root = tmp_path / "corpus"
        root.mkdir(exist_ok=True)
        for i in range(len(VOTES)):
            tone = 0.3 * np.sin(2 * np.pi * (200 + 50 * i) * np.arange(8000) / 16000)
            soundfile.write(root / f"tone{i}.wav", tone, 16000)
        usual = lines()
        predictions = [changed for line in other or usual if (changed := change(line)) is not None]
        text = usual_scores if predictions == usual and not record else scored(predictions, **record)
        return Material(json.loads(text), [asdict(line) for line in predictions], root)

    return make
