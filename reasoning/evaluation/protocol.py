"""The protocol: everything that must stand beside a score for the number to mean something."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from reasoning.distributions import SHARE_FLOOR
from reasoning.errors import EvaluationError
from reasoning.evaluation.metrics import TIE_RULE, UNPARSEABLE_RULE
from reasoning.evaluation.predictions import SAMPLES, Prediction
from reasoning.evaluation.record import RunRecord

VOTE_RULE = "all votes as counted, unsmoothed; each clip weighs the same; no clip is dropped for its disagreement"
TEMPERATURE_RULE = (
    "tempered scores: shares raised to 1/T and renormalised, T fitted per system, readout and fold by nll_bits on the "
    "fold's dev speakers, by the same rule for every system and baseline; controls use their system's T"
)
INTERVAL_RULE = (
    "95%, clustered by speaker: delete-one-speaker jackknife, Student's t on speakers - 1 degrees of freedom; "
    "differences are paired on identical clips"
)

ALIKE = ("model_fingerprint", "engine", "level", "prompt_fingerprint", "max_new_tokens")
"""What one system has in common on all folds; the adapter is each fold's own."""


@dataclass(frozen=True)
class Protocol:
    """What was scored and how; `lines` prints it. n_votes: votes of the scored clips. floor: see `SHARE_FLOOR`."""

    corpus: str
    statement: str
    rater_task: str
    split: str
    folds: str
    subset: str
    n_clips: int
    n_speakers: int
    n_votes: int
    vote_rule: str
    tie_rule: str
    unparseable_rule: str
    readouts: str
    prompt_level: str
    decoding: str
    nll_floor: float
    temperature: str
    intervals: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return asdict(self)

    def lines(self) -> list[str]:
        """One `name: value` line a field, in reading order."""
        return [f"{name.replace('_', ' ')}: {value}" for name, value in asdict(self).items()]


def check_poolable(runs: Sequence[RunRecord]) -> None:
    """Raises EvaluationError when runs cannot be pooled: another corpus, other emotions, another number of folds, or
    one system that is two models or was asked in two ways."""
    first = runs[0]
    for run in runs:
        for name in ("corpus", "corpus_fingerprint", "emotions", "folds"):
            if getattr(run, name) != getattr(first, name):
                what = f"{run.system!r} of fold {run.fold} has {getattr(run, name)!r}, others {getattr(first, name)!r}"
                raise EvaluationError(what, field=name, cure="pool only runs on one corpus, prepared once")
    for name in ALIKE:
        _each(runs, name)


def protocol_of(runs: Sequence[RunRecord], test: Sequence[Prediction]) -> Protocol:
    """The protocol of runs that `check_poolable` lets pass. test: one series' test lines, every other's clips too."""
    first = runs[0]
    return Protocol(
        corpus=first.corpus,
        statement=first.statement,
        rater_task=first.rater_task,
        split="test speakers of each fold, in neither its training nor its dev split",
        folds=f"{', '.join(str(f) for f in sorted({run.fold for run in runs}))} of {first.folds}",
        subset=_subset(runs),
        n_clips=len(test),
        n_speakers=len({line.speaker for line in test}),
        n_votes=sum(sum(line.votes) for line in test),
        vote_rule=VOTE_RULE,
        tie_rule=TIE_RULE,
        unparseable_rule=UNPARSEABLE_RULE,
        readouts=(
            "label: softmax over the labels right after `Vote:` (prefix no_think: no thinking before it; own_think: "
            "the model's own, closed for it where it had no end: forced); verbalized: the Shares that the model wrote, "
            "freely; guided: the same where the answer grammar gives every token that breaks it probability zero; "
            "guided_mean: the mean of several such"
        ),
        prompt_level=_each(runs, "level"),
        decoding=(
            f"greedy; guided_mean: {SAMPLES} samples at temperature 1; "
            f"at most {_each(runs, 'max_new_tokens')} new tokens each"
        ),
        nll_floor=SHARE_FLOOR,
        temperature=TEMPERATURE_RULE,
        intervals=INTERVAL_RULE,
    )


def _each(runs: Sequence[RunRecord], name: str) -> str:
    """One value, or `system value` pairs where systems differ. Raises EvaluationError where one system has two."""
    values: dict[str, Any] = {}
    for run in runs:
        if values.setdefault(run.system, getattr(run, name)) != getattr(run, name):
            two = f"{values[run.system]!r} on one fold and {getattr(run, name)!r} on another"
            what = f"{run.system!r} was asked with {two}"
            raise EvaluationError(what, field=name, cure="evaluate all folds of a system alike")
    if len(set(values.values())) == 1:
        return str(next(iter(values.values())))
    return ", ".join(f"{system} {value}" for system, value in values.items())


def _subset(runs: Sequence[RunRecord]) -> str:
    limits = {run.limit for run in runs if run.limit is not None and run.limit < run.n_test}
    if not limits:
        return "every test clip"
    sizes = {run.fold: run.n_test for run in runs}
    return f"at most {max(limits)} test clips a fold, in a seeded order, of {sum(sizes.values())} in these folds"
