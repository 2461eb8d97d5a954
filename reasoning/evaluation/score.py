"""Predictions -> scores.json: every system beside baselines, controls and human reference points, with intervals.

Keys are stable and documented in docs/evaluate.md; `FORMAT` changes when they do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reasoning.distributions import brier, temper
from reasoning.errors import EvaluationError
from reasoning.evaluation.baselines import fit_temperature
from reasoning.evaluation.comparisons import compare_all
from reasoning.evaluation.human import (
    RATERS,
    enough_votes,
    model_against_the_rest,
    rater_equivalent,
    raters_against_the_rest,
    sampling_floor,
)
from reasoning.evaluation.metrics import METRICS, additive_metrics, confusion_parts, entropy_bins
from reasoning.evaluation.predictions import Prediction, Series, in_order
from reasoning.evaluation.protocol import check_poolable, protocol_of
from reasoning.evaluation.record import RunRecord
from reasoning.evaluation.statistics import Additive, few_speakers_note, jackknife_interval, mean_of

Array = NDArray[np.float64]

FORMAT = 1
ENTROPY_STEP = 0.5
FLOOR_DRAWS, FLOOR_SEED = 200, 0


@dataclass(frozen=True)
class Scored:
    """One series on the shared test clips. temperatures: fold -> T, or None where dev answers are missing."""

    series: Series
    prefixes: tuple[str, ...]
    votes_NK: NDArray[np.int64]
    probs_NK: Array
    failed_N: NDArray[np.bool_]
    speakers: tuple[str, ...]
    folds_N: NDArray[np.int64]
    problems: Mapping[str, int]
    temperatures: Mapping[int, float] | None
    metrics: Mapping[str, Additive] = field(init=False)
    tempered: Mapping[str, Additive] | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "metrics", additive_metrics(self.votes_NK, self.probs_NK, self.failed_N))
        object.__setattr__(self, "tempered", self._tempered())

    @property
    def key(self) -> str:
        return "/".join(self.series)

    def _tempered(self) -> dict[str, Additive] | None:
        if self.temperatures is None:
            return None
        probs = self.probs_NK.copy()
        for fold, temperature in self.temperatures.items():
            rows = (self.folds_N == fold) & ~self.failed_N
            if rows.any():
                probs[rows] = temper(probs[rows], temperature)
        return additive_metrics(self.votes_NK, probs, self.failed_N)


def score(predictions: Sequence[Prediction], runs: Sequence[RunRecord]) -> dict[str, Any]:
    """The content of scores.json for pooled predictions (see `predictions.pool`) and the records of their runs.

    Raises EvaluationError when the runs cannot be pooled or systems do not answer for the same clips, naming the
    difference.
    """
    check_poolable(runs)
    test, dev = _by_series(predictions, "test"), _by_series(predictions, "dev")
    if not test:
        raise EvaluationError("no prediction of a test clip", cure="run the `equivox evaluate` command to its end")
    ids = _shared_ids(test)
    scored = [_scored(series, [lines[i] for i in ids], dev) for series, lines in test.items()]
    one = [next(iter(test.values()))[i] for i in ids]
    protocol = protocol_of(runs, one)
    by_fold = {str(run.fold): run for run in runs}
    return {
        "format": FORMAT,
        "emotions": list(runs[0].emotions["names"]),
        "protocol": protocol.to_dict(),
        "few_speakers": few_speakers_note(protocol.n_speakers),
        "systems": [_system(s) for s in scored],
        "comparisons": compare_all(scored),
        "human": _human(scored, runs),
        "controls": {str(run.fold): {"shuffled": run.shuffled} for run in runs if run.shuffled},
        "baselines": {fold: dict(run.fitted) for fold, run in by_fold.items()},
        "runs": [_run(run) for run in runs],
    }


def _by_series(predictions: Sequence[Prediction], split: str) -> dict[Series, dict[str, Prediction]]:
    found: dict[Series, dict[str, Prediction]] = {}
    for line in predictions:
        if line.split == split:
            found.setdefault(line.series, {})[line.id] = line
    return {series: found[series] for series in in_order(found)}


def _shared_ids(test: Mapping[Series, Mapping[str, Prediction]]) -> list[str]:
    """The clip ids that every series answers for, sorted. Raises EvaluationError when one lacks any."""
    everything = {i for lines in test.values() for i in lines}
    for series, lines in test.items():
        missing = sorted(everything - set(lines))
        if missing:
            some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            cure = "run its `equivox evaluate` command on every fold, with the same --readouts, --controls and --limit"
            if series[2] != "none":
                there = ", ".join(str(fold) for fold in sorted({line.fold for line in lines.values()}))
                cure += (
                    f"; or, to do without, delete the lines with this control from predictions.jsonl of fold {there}"
                )
            raise EvaluationError(
                f"has no answer for {len(missing)} of the {len(everything)} clips that others answer ({some}); "
                "differences are paired on identical clips",
                row="/".join(series),
                cure=cure,
            )
    return sorted(everything)


def _scored(series: Series, lines: Sequence[Prediction], dev: Mapping[Series, Mapping[str, Prediction]]) -> Scored:
    k = len(lines[0].votes)
    failed = np.array([line.probabilities is None for line in lines])
    return Scored(
        series=series,
        prefixes=tuple(sorted({line.prefix for line in lines if line.prefix})),
        votes_NK=np.array([line.votes for line in lines]),
        probs_NK=np.array([line.probabilities or (1 / k,) * k for line in lines]),
        failed_N=failed,
        speakers=tuple(line.speaker for line in lines),
        folds_N=np.array([line.fold for line in lines]),
        problems=dict(Counter(p for line in lines for p in line.problems).most_common()),
        temperatures=_temperatures(series, {line.fold for line in lines}, dev),
    )


def _temperatures(
    series: Series, folds: set[int], dev: Mapping[Series, Mapping[str, Prediction]]
) -> dict[int, float] | None:
    """Fold -> temperature from the dev answers of the same system and readout; None when a fold has none usable."""
    lines = dev.get((series[0], series[1], "none"), {}).values()
    found = {}
    for fold in sorted(folds):
        usable = [line for line in lines if line.fold == fold and line.probabilities is not None]
        if not usable:
            return None
        found[fold] = fit_temperature([u.votes for u in usable], [u.probabilities or () for u in usable])
    return found


def _system(s: Scored) -> dict[str, Any]:
    k = s.votes_NK.shape[1]
    tied = (s.votes_NK == s.votes_NK.max(axis=1, keepdims=True)).sum(axis=1) > 1
    tempered = None
    if s.tempered is not None and s.temperatures is not None:
        temperature = {str(fold): t for fold, t in s.temperatures.items()}
        tempered = {"temperature": temperature, "metrics": _intervals(s.tempered, s.speakers)}
    return {
        "key": s.key,
        "system": s.series[0],
        "readout": s.series[1],
        "control": s.series[2],
        "prefixes": list(s.prefixes),
        "n_clips": len(s.votes_NK),
        "n_speakers": len(set(s.speakers)),
        "n_failed": int(s.failed_N.sum()),
        "problems": dict(s.problems),
        "parse_rate": jackknife_interval(mean_of((~s.failed_N).astype(float)), s.speakers).to_dict(),
        "hard": {"n_scored": int((~tied).sum()), "n_tied": int(tied.sum())},
        "metrics": _intervals(s.metrics, s.speakers),
        "tempered": tempered,
        "by_vote_entropy": _by_entropy(s),
        "confusion": confusion_parts(s.votes_NK, s.probs_NK, s.failed_N).sum(axis=0).reshape(k, k + 1).tolist(),
    }


def _intervals(metrics: Mapping[str, Additive], speakers: Sequence[str]) -> dict[str, Any]:
    return {name: jackknife_interval(metrics[name], speakers).to_dict() for name in METRICS}


def _by_entropy(s: Scored) -> list[dict[str, Any]]:
    """Mean jsd_bits of the clips in each bin of vote entropy, ENTROPY_STEP bits wide; empty bins are left out."""
    edges = [*np.arange(0, np.log2(s.votes_NK.shape[1]), ENTROPY_STEP).tolist(), float(np.log2(s.votes_NK.shape[1]))]
    bins, values = entropy_bins(edges, s.votes_NK), s.metrics["jsd_bits"].parts_NM[:, 0]
    speakers, found = np.array(s.speakers), []
    for i in np.unique(bins):
        rows = bins == i
        interval = jackknife_interval(mean_of(values[rows]), speakers[rows].tolist()).to_dict()
        found.append({"from_bits": edges[i], "to_bits": edges[i + 1], "n_clips": int(rows.sum()), "jsd_bits": interval})
    return found


def _human(scored: Sequence[Scored], runs: Sequence[RunRecord]) -> dict[str, Any]:
    one = scored[0]
    alphas = {run.fold: run.fitted["dirichlet_alpha"] for run in runs}
    floor = np.zeros(len(one.votes_NK))
    for fold in np.unique(one.folds_N):
        rows = one.folds_N == fold
        floor[rows] = sampling_floor(one.votes_NK[rows], alphas[int(fold)], FLOOR_DRAWS, FLOOR_SEED)
    interval = jackknife_interval(mean_of(floor), one.speakers).to_dict()
    return {
        "raters": _raters([s for s in scored if s.series[2] == "none"]),
        "sampling_floor": {"jsd_bits": interval, "draws": FLOOR_DRAWS, "seed": FLOOR_SEED},
    }


def _raters(scored: Sequence[Scored]) -> dict[str, Any] | None:
    """k raters against the remaining votes, and each system on the same remaining votes; None without enough votes."""
    kept = enough_votes(scored[0].votes_NK)
    if not kept.any():
        return None
    votes, speakers = scored[0].votes_NK[kept], np.array(scored[0].speakers)[kept].tolist()
    people = [raters_against_the_rest(votes, k) for k in RATERS]

    def intervals(values: Sequence[Array]) -> list[dict[str, float | None]]:
        return [jackknife_interval(mean_of(v), speakers).to_dict() for v in values]

    models = {}
    for s in scored:
        failed = s.failed_N[kept]
        own = [np.where(failed, 1.0, model_against_the_rest(votes, s.probs_NK[kept], k)) for k in RATERS]
        gaps = [a - b for a, b in zip(own, people, strict=True)]
        k, text = rater_equivalent([float(gap.mean()) for gap in gaps])
        models[s.key] = {
            "jsd_bits": intervals(own),
            "difference": intervals(gaps),
            "rater_equivalent_k": k,
            "text": text,
        }
    return {
        "k": list(RATERS),
        "n_clips": int(kept.sum()),
        "n_left_out": int((~kept).sum()),
        "jsd_bits": intervals(people),
        "brier": intervals([raters_against_the_rest(votes, k, brier) for k in RATERS]),
        "models": models,
    }


def _run(run: RunRecord) -> dict[str, Any]:
    names = ("system", "fold", "model", "model_fingerprint", "adapter", "adapter_fingerprint", "engine", "level",
             "max_new_tokens", "seed", "limit", "n_train", "n_dev", "n_test", "corpus_fingerprint")  # fmt: skip
    return {name: getattr(run, name) for name in names}
