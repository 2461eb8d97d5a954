"""Stages of training side by side, over seeds: what each adds to the one before it, on the same held-out clips.

A system is called `NAME@SEED`; `A+B` is stage B on top of A and is compared with A, a name without a plus with the one
evaluated before it. Seeds are pooled by the clip: its score is the mean over seeds, and the interval over clips is
clustered by speaker. It says how the figures would vary with other speakers; how they vary with other seeds is what the
lowest and highest seed's mean beside it show.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reasoning.emotions import EmotionSet
from reasoning.errors import EvaluationError
from reasoning.evaluation.comparisons import NON_INFERIORITY_MARGIN, sentence, verdict_of
from reasoning.evaluation.human import RATERS, enough_votes, raters_against_the_rest, sampling_floor
from reasoning.evaluation.metrics import PROPER, per_clip
from reasoning.evaluation.predictions import FORCED, SAMPLES, Prediction, in_order
from reasoning.evaluation.statistics import Array, Interval, few_speakers_note, jackknife_interval, mean_of
from reasoning.grounding import Levels, is_measured
from reasoning.response import read_response
from reasoning.verifier import grounded_share

JUDGED = ("jsd_bits", *PROPER)
"""What decides whether a stage helps."""

SAID = {
    "helps": "jsd_bits falls, and a proper score agrees",
    "sharpens": "jsd_bits falls, but the proper scores do not agree",
    "does not help": f"a gain of {NON_INFERIORITY_MARGIN:g} jsd_bits is excluded, and the proper scores do not gain",
    "hurts": "jsd_bits rises, and a proper score agrees",
    "undecided": "the interval leaves room for a gain and for none: more clips, speakers or seeds would tell",
}
"""What may be said of a stage over the one that it stands on, and the rule."""

_SAID_OF = {"better": "helps", "sharpening": "sharpens", "worse": "hurts"}

REFERENCES = ("training_prior", "linear_probe")
"""Baselines that are shown beside the stages."""


@dataclass(frozen=True)
class Told:
    """What predictions do not hold. tokens: of a written answer. thinks: systems that were asked to think.
    levels: clip id -> measured cues, to hold their thinking against. donors: clip id -> the clip whose cues stand for
    swapped sound. minutes: system -> minutes that its own training took. alphas: fold -> the Dirichlet-multinomial
    fitted on its train votes (`human.fit_dirichlet_multinomial`). Systems are called `NAME@SEED`."""

    emotions: EmotionSet
    tokens: Callable[[str], int]
    thinks: frozenset[str]
    levels: Mapping[str, Levels]
    donors: Mapping[str, str]
    minutes: Mapping[str, float]
    alphas: Mapping[int, Sequence[float]]


@dataclass(frozen=True, eq=False)
class Stage:
    """One stage and readout. by_seed: seed -> name -> (N,), the score of each clip, the same clips for all stages and
    seeds; NaN where a clip is not judged."""

    name: str
    readout: str
    speakers: tuple[str, ...]
    by_seed: Mapping[str, Mapping[str, Array]]

    @property
    def title(self) -> str:
        return self.name if self.readout == "none" else f"{self.name} {self.readout}"

    def scores(self, key: str, seeds: Sequence[str] = ()) -> Array:
        """(N,) of each clip: its mean over these seeds, without any over all."""
        return np.mean([self.by_seed[seed][key] for seed in seeds or self.by_seed], axis=0)


def compare_stages(predictions: Sequence[Prediction], told: Told) -> dict[str, Any]:
    """Every stage's figures, each against the stage it stands on, and which of them help, as a JSON-safe dict.

    predictions: pooled test lines of all systems; controls are left out. Raises EvaluationError when systems do not
    answer for the same clips.
    """
    stages = pool_seeds(predictions, told)
    found = [_compare(stage, under) for stage in stages if (under := _under(stage, stages)) is not None]
    speakers = len(set(stages[0].speakers))
    return {
        "n_clips": len(stages[0].speakers),
        "n_speakers": speakers,
        "few_speakers": few_speakers_note(speakers),
        "human": _human(predictions, told),
        "stages": [_figures(stage, told) for stage in stages],
        "comparisons": found,
        "said": {kind: [c["title"] for c in found if c["said"] == kind] for kind in SAID},
    }


def pool_seeds(predictions: Sequence[Prediction], told: Told) -> list[Stage]:
    """The stages in the order of the predictions, baselines of REFERENCES first."""
    series: dict[tuple[str, str], dict[str, list[Prediction]]] = defaultdict(lambda: defaultdict(list))
    for line in predictions:
        if line.split != "test" or line.control != "none":
            continue
        if line.readout == "none" and line.system not in REFERENCES:
            continue
        name, _, seed = line.system.partition("@")
        series[name, line.readout][seed].append(line)
    if not any(readout != "none" for _, readout in series):
        raise EvaluationError("hold no answer of a model to a test clip", field="runs")
    wanted = sorted({line.id for seeds in series.values() for lines in seeds.values() for line in lines})
    ordered = in_order((name, readout, "none") for name, readout in series)
    ordered.sort(key=lambda one: one[1] != "none")
    return [_stage(name, readout, series[name, readout], wanted, told) for name, readout, _ in ordered]


def _stage(
    name: str, readout: str, seeds: Mapping[str, Sequence[Prediction]], wanted: Sequence[str], told: Told
) -> Stage:
    scores, speakers = {}, ()
    for seed, lines in seeds.items():
        by_id = {line.id: line for line in lines}
        missing = [i for i in wanted if i not in by_id]
        if missing:
            what = f"has no answer for {len(missing)} of the {len(wanted)} clips that others answer ({missing[0]} ...)"
            cure = "give all evaluations the same --fold and --limit"
            raise EvaluationError(what, row=f"{name}@{seed}/{readout}", cure=cure)
        lines = [by_id[i] for i in wanted]
        scores[seed] = _scores(lines, readout, told)
        speakers = tuple(line.speaker for line in lines)
    return Stage(name, readout, speakers, scores)


def _scores(lines: Sequence[Prediction], readout: str, told: Told) -> dict[str, Array]:
    """name -> (N,) of one seed; of a label readout after own thinking, whether that had to be closed by force; of what
    is written closeness, whether it reads, and of its answers, means where guided_mean takes several, tokens and the
    Voice line's truth: NaN where nothing could be measured, as the reward does not judge such a clip."""
    k = len(lines[0].votes)
    failed = np.array([line.probabilities is None for line in lines])
    probs = [line.probabilities or (1 / k,) * k for line in lines]
    found = per_clip([line.votes for line in lines], probs, failed)
    scores = {key: found[key] for key in JUDGED}
    if readout == "label" and lines[0].system in told.thinks:
        scores["forced"] = np.array([FORCED in line.problems for line in lines], dtype=float)
    if readout in ("label", "none"):
        return scores
    scores |= {"closeness": 1 - found["jsd_bits"], "parsed": (~failed).astype(float)}
    n = SAMPLES if readout == "guided_mean" else 1
    scores["tokens"] = np.array([sum(map(told.tokens, line.answers)) / n for line in lines], dtype=float)
    if lines[0].system in told.thinks:
        for key, whose in (
            ("grounding", [c.id for c in lines]),
            ("grounding_swapped", [told.donors[c.id] for c in lines]),
        ):
            levels = [told.levels[clip] for clip in whose]
            shares = [_grounded(line, own, told) / n for line, own in zip(lines, levels, strict=True)]
            if any(map(is_measured, levels)):
                scores[key] = np.array(shares)
        if {"grounding", "grounding_swapped"} <= scores.keys():
            scores["grounding_heard"] = scores["grounding"] - scores["grounding_swapped"]
    return scores


def _grounded(line: Prediction, levels: Levels, told: Told) -> float:
    """The sum over a line's answers of the share of claims that are true of a clip with these cues."""
    if not is_measured(levels):
        return float("nan")
    return sum(grounded_share(read_response(text, told.emotions), levels) for text in line.answers)


def _under(stage: Stage, stages: Sequence[Stage]) -> Stage | None:
    """The stage that this one stands on, in the same readout; None for the first and for baselines."""
    alike = [other for other in stages if other.readout == stage.readout != "none"]
    if "+" in stage.name:
        return next((other for other in alike if other.name == stage.name.rpartition("+")[0]), None)
    before = [other for other in alike[: alike.index(stage)] if "+" not in other.name] if alike else []
    return before[-1] if before else None


def _compare(stage: Stage, under: Stage) -> dict[str, Any]:
    seeds = _common_seeds(stage, under)
    differences = {
        key: _interval(stage.scores(key, seeds) - under.scores(key, seeds), stage.speakers) for key in JUDGED
    }
    verdict = verdict_of(differences)
    return {
        "stage": stage.name,
        "under": under.name,
        "readout": stage.readout,
        "title": f"{stage.title} over {under.name}",
        "metrics": {key: interval.to_dict() for key, interval in differences.items()},
        "seeds": seeds,
        "verdict": verdict,
        "said": _said(verdict, differences),
        "sentence": sentence(stage.title, under.title, differences, None, "system"),
    }


def _common_seeds(stage: Stage, under: Stage) -> list[str]:
    """The seeds that both were trained with, so that a seed that one lacks is not taken for the stage's doing; none
    where one has no seed, as an untrained model."""
    if "" in (*stage.by_seed, *under.by_seed):
        return []
    if common := [seed for seed in stage.by_seed if seed in under.by_seed]:
        return common
    what = f"has no seed in common with {under.name}, which it is compared with"
    raise EvaluationError(what, row=stage.name, field="seeds", cure="train and evaluate both with the same seeds")


def _said(verdict: str, differences: Mapping[str, Interval]) -> str:
    if verdict in _SAID_OF:
        return _SAID_OF[verdict]
    gains = any(differences[key].high < 0 for key in PROPER)
    return "undecided" if gains or differences["jsd_bits"].low <= -NON_INFERIORITY_MARGIN else "does not help"


def _figures(stage: Stage, told: Told) -> dict[str, Any]:
    systems = [f"{stage.name}@{seed}" for seed in stage.by_seed]
    minutes = [told.minutes[system] for system in systems if system in told.minutes]
    first, *others = stage.by_seed.values()
    names = [key for key in first if all(key in other for other in others)]
    return {
        "name": stage.name,
        "readout": stage.readout,
        "title": stage.title,
        "seeds": [seed for seed in stage.by_seed if seed],
        "metrics": {
            key: {
                **_interval(stage.scores(key), stage.speakers).to_dict(),
                "seeds": [float(np.nanmean(scores[key])) for scores in stage.by_seed.values()],
            }
            for key in names
        },
        "minutes": float(np.mean(minutes)) if minutes else None,
    }


def _human(predictions: Sequence[Prediction], told: Told) -> dict[str, Any]:
    """jsd_bits of human reference points on these clips: an oracle's floor from vote sampling, and k raters against the
    remaining votes, on the clips with enough of them."""
    by_id = {line.id: line for line in predictions if line.split == "test"}
    clips = [by_id[name] for name in sorted(by_id)]
    votes_NK, speakers = np.array([c.votes for c in clips]), [c.speaker for c in clips]
    folds, floor = np.array([c.fold for c in clips]), np.zeros(len(clips))
    for fold in np.unique(folds):
        floor[folds == fold] = sampling_floor(votes_NK[folds == fold], told.alphas[int(fold)])
    kept = enough_votes(votes_NK)
    some = [speaker for speaker, keep in zip(speakers, kept, strict=True) if keep]
    raters = {k: _interval(raters_against_the_rest(votes_NK[kept], k), some).to_dict() for k in RATERS if kept.any()}
    return {"sampling_floor": _interval(floor, speakers).to_dict(), "raters": raters, "n_rated": int(kept.sum())}


def _interval(values: Array, speakers: Sequence[str]) -> Interval:
    """Of the mean over the clips that are judged."""
    judged = ~np.isnan(values)
    return jackknife_interval(mean_of(values[judged]), np.asarray(speakers)[judged].tolist())
