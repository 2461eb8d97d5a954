"""Does a reference trace fix the answer by itself? The label readout after given thinking, with trace or sound swapped.

A model that was trained on traces may learn to copy what they say and no longer listen. So each clip is asked three
times: with its own trace and sound, with another clip's trace, and with another clip's sound. All are readouts
`label_teacher_forced`: a diagnostic of the traces and of what was learned from them, never a result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from reasoning.clips import Clip
from reasoning.distributions import jsd_bits, normalize_votes
from reasoning.errors import EvaluationError
from reasoning.evaluation.comparisons import NON_INFERIORITY_MARGIN
from reasoning.evaluation.controls import plan_shuffled
from reasoning.evaluation.metrics import per_clip
from reasoning.evaluation.predict import some_clips
from reasoning.evaluation.statistics import Array, Interval, few_speakers_note, jackknife_interval, mean_of
from reasoning.inference.engine import LabelScores, Request

READOUT = "label_teacher_forced"
CONDITIONS = {
    "own": "its own trace, its own sound",
    "other_trace": "another clip's trace, its own sound",
    "other_sound": "its own trace, another clip's sound",
}
_SCORES = ("jsd_bits", "nll_bits", "brier")


class Reader(Protocol):
    """An engine that can be handed the thinking."""

    def score_labels_after(self, requests: Sequence[Request], thinking: Mapping[str, str]) -> Iterator[LabelScores]: ...


def swap_traces(
    engine: Reader,
    clips: Sequence[Clip],
    traces: Mapping[str, str],
    root: Path,
    seed: int = 0,
    limit: int | None = None,
) -> dict[str, Any]:
    """What the swaps cost, against each clip's votes, as a JSON-safe dict; intervals are clustered by speaker.

    clips: those without a trace are left out. The other clip is of another speaker, says the same sentence where
    possible, and has other votes (`controls.plan_shuffled`). limit: clips asked about, the first of a seeded order.
    Keys: `conditions` (jsd_bits, nll_bits, brier to the clip's votes), `differences` (each swap minus own), `moved`
    (jsd_bits between the answers before and after each swap), `verdict` and the counts. Raises EvaluationError where
    fewer than two speakers have traces.
    """
    told = [clip for clip in clips if clip.id in traces]
    if len({clip.speaker for clip in told}) < 2:
        what = f"holds traces of {len(told)} of these {len(clips)} clips, by fewer than two speakers"
        raise EvaluationError(what, field="traces", cure="make traces of this corpus with `equivox prepare cot`")
    donors = plan_shuffled(told, seed).donors
    asked = some_clips(told, limit, seed)
    probs = {name: _ask(engine, asked, donors, traces, root, name) for name in CONDITIONS}
    votes_NK, speakers = np.array([clip.votes for clip in asked]), [clip.speaker for clip in asked]
    scores = {name: per_clip(votes_NK, answered) for name, answered in probs.items()}

    def mean(values: Array) -> dict[str, float | None]:
        return jackknife_interval(mean_of(values), speakers).to_dict()

    swaps = [name for name in CONDITIONS if name != "own"]
    costs = {name: jackknife_interval(mean_of(scores[name]["jsd_bits"] - scores["own"]["jsd_bits"]), speakers)
             for name in swaps}  # fmt: skip
    return {
        "readout": READOUT,
        "n_clips": len(asked),
        "n_without_trace": len(clips) - len(told),
        "n_speakers": len(set(speakers)),
        "few_speakers": few_speakers_note(len(set(speakers))),
        "conditions": {name: {key: mean(scores[name][key]) for key in _SCORES} for name in CONDITIONS},
        "differences": {name: {key: mean(scores[name][key] - scores["own"][key]) for key in _SCORES} for name in swaps},
        "moved": {name: mean(jsd_bits(probs["own"], probs[name])) for name in swaps},
        "prior_jsd_bits": mean(_constant(votes_NK)),
        "verdict": verdict(costs["other_trace"], costs["other_sound"]),
    }


def verdict(trace: Interval, sound: Interval) -> str:
    """What the jsd_bits lost by swapping the trace, and by swapping the sound, let one say.

    A swap counts when its interval lies above zero, and does not when it ends under NON_INFERIORITY_MARGIN.
    """
    figures = f"(jsd_bits lost with another trace {_figure(trace)}, with another sound {_figure(sound)})"
    counts = tuple(_counts(cost) for cost in (trace, sound))
    said = {
        (True, False): "the trace alone fixes the answer: the sound adds nothing to it",
        (False, True): "the sound decides: the trace adds nothing to it",
        (True, True): "both count: the answer follows the trace and the sound",
        (False, False): "neither counts: the answer follows neither the trace nor the sound",
    }.get(counts, "not decided by this many clips and speakers")  # type: ignore[call-overload]
    return f"{said} {figures}"


def _counts(cost: Interval) -> bool | None:
    if cost.low > 0:
        return True
    return False if cost.high < NON_INFERIORITY_MARGIN else None


def _figure(cost: Interval) -> str:
    return f"{cost.estimate:+.3f} [{cost.low:+.3f}, {cost.high:+.3f}]"


def _constant(votes_NK: Array) -> Array:
    """jsd_bits of the mean of these clips' own votes: what an answer that is the same for all of them scores."""
    shares = normalize_votes(votes_NK)
    return jsd_bits(shares, np.repeat(shares.mean(axis=0, keepdims=True), len(shares), axis=0))


def _ask(
    engine: Reader,
    clips: Sequence[Clip],
    donors: Mapping[str, Clip],
    traces: Mapping[str, str],
    root: Path,
    condition: str,
) -> Array:
    """The label readout of each clip under a condition, (N, K)."""
    sounds = {c.id: root / (donors[c.id] if condition == "other_sound" else c).audio for c in clips}
    thinking = {c.id: traces[donors[c.id].id if condition == "other_trace" else c.id] for c in clips}
    requests = [Request(c.id, sounds[c.id], c.transcript, "think") for c in clips]
    answers = engine.score_labels_after(requests, thinking)
    return np.array([a.probabilities for a in tqdm(answers, total=len(clips), desc=CONDITIONS[condition], unit="clip")])
