"""The report's panels as data: dot-and-interval charts, uncertainty plots and mean shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reasoning.distributions import normalize_votes
from reasoning.evaluation.report.charts import Axis, CalibrationBin, Scatter, axis, calibration, entropy_scatter
from reasoning.evaluation.report.verdict import READS, TONES, Tone
from reasoning.evaluation.report.views import ClipAnswers, Comparison, Kind, Scores, Series
from reasoning.evaluation.statistics import Interval

GROUP_TITLES: dict[Kind, str] = {
    "model": "Models",
    "control": "Controls: the model without the right audio",
    "baseline": "Baselines",
}


JSD_RANGE = (0.0, 1.0)


@dataclass(frozen=True)
class Row:
    """One line of a chart: what it is, how it is marked (model, control, baseline, human), its value, a toned note."""

    title: str
    kind: str
    value: Interval
    note: str = ""
    tone: Tone = "plain"


@dataclass(frozen=True)
class Forest:
    """Dots with intervals on one axis, in titled groups. reference: a dashed line. signed: show plus signs."""

    caption: str
    axis: Axis
    groups: tuple[tuple[str, tuple[Row, ...]], ...]
    reference: float | None = None
    signed: bool = False


def _forest(
    caption: str, groups: Sequence[tuple[str, Sequence[Row]]], reference: float | None = None, signed: bool = False
) -> Forest:
    values = [v for _, rows in groups for r in rows for v in (r.value.estimate, r.value.low, r.value.high)]
    kept = tuple((title, tuple(rows)) for title, rows in groups if rows)
    scale = axis(values, include=(0.0,)) if signed else axis(values, within=JSD_RANGE)
    return Forest(caption, scale, kept, reference, signed)


def headline_forest(scores: Scores) -> Forest:
    """jsd_bits of every system with its interval; models as listed, the rest from best to worst."""
    groups = []
    for kind, title in GROUP_TITLES.items():
        rows = [Row(s.title, kind, s.metrics["jsd_bits"]) for s in scores.series if s.kind == kind]
        groups.append((title, rows if kind == "model" else sorted(rows, key=lambda r: r.value.estimate)))
    if scores.sampling_floor is not None:
        row = Row("Sampling floor", "human", scores.sampling_floor, "the true shares, seen through this few votes")
        groups.append(("Reference", [row]))
    prior = next((s for s in scores.series if s.system == "training_prior"), None)
    reference = prior.metrics["jsd_bits"].estimate if prior else None
    return _forest("jsd_bits against the votes, lower is better, with 95% intervals", groups, reference)


def rater_forest(scores: Scores) -> Forest | None:
    """k raters and each model against the same remaining votes; None where raters were not scored."""
    raters = scores.raters
    if raters is None:
        return None
    groups = []
    for i, k in enumerate(raters.k):
        people = Row(f"{k} {'rater' if k == 1 else 'raters'}", "human", raters.jsd_bits[i])
        shown = [
            s for s in scores.series if s.key in raters.models and (s.kind == "model" or s.system == "linear_probe")
        ]
        models = [Row(s.title, s.kind, raters.models[s.key][i]) for s in sorted(shown, key=_models_first)]
        groups.append((f"Against the votes that remain beside {people.title}", [people, *models]))
    return _forest("jsd_bits against the remaining votes, lower is better, with 95% intervals", groups)


def rater_equivalents(scores: Scores) -> list[tuple[str, str]]:
    """(title, text) of every system that was scored against raters, models first."""
    texts = scores.raters.equivalents if scores.raters is not None else {}
    return [(s.title, texts[s.key]) for s in sorted(scores.series, key=_models_first) if s.key in texts]


def _models_first(series: Series) -> int:
    return list(GROUP_TITLES).index(series.kind)


@dataclass(frozen=True)
class Differences:
    """Paired jsd_bits differences under one heading, as a chart and as the comparisons behind it."""

    title: str
    note: str
    chart: Forest
    comparisons: tuple[Comparison, ...]


_DIFFERENCES = {
    "baseline": "Against baselines",
    "system": "Against other systems",
    "readout": "Between readouts",
    "control": "Against itself without the right audio",
}
_LEAK = (
    "Without the right audio a model should know no more than the sentence. A control that beats the sentence-only "
    "predictor would point to a leak."
)


def differences(scores: Scores) -> list[Differences]:
    """One entry for every model that was compared, and one for the controls against the sentence-only predictor."""
    found = []
    for series in (s for s in scores.series if s.kind == "model"):
        own = tuple(c for c in scores.comparisons if c.system == series.key)
        others = [(c, scores.by_key(c.versus)) for c in own]
        groups = [
            (title, [_difference(other.title, other, c, TONES[c.verdict]) for c, other in others if c.kind == kind])
            for kind, title in _DIFFERENCES.items()
        ]
        if own:
            caption = (
                f"{series.title} minus the other, jsd_bits on the same clips: left of zero, it is closer to the votes"
            )
            found.append(Differences(series.title, "", _forest(caption, groups, signed=True), own))
    controls = tuple(c for c in scores.comparisons if scores.by_key(c.system).kind == "control")
    if controls:
        pairs = [(c, scores.by_key(c.system)) for c in controls]
        rows = [_difference(control.title, control, c, "plain") for c, control in pairs]
        chart = _forest("control minus sentence only, jsd_bits on the same clips", [("Controls", rows)], signed=True)
        found.append(Differences("Controls against the sentence alone", _LEAK, chart, controls))
    return found


def _difference(title: str, marked: Series, comparison: Comparison, tone: Tone) -> Row:
    return Row(title, marked.kind, comparison.metrics["jsd_bits"], READS[comparison.verdict], tone)


def entropy_bin_forest(scores: Scores) -> Forest | None:
    """jsd_bits by how much the listeners disagreed: models, the training prior and the linear probe."""
    shown = [s for s in scores.series if s.kind == "model" or s.system in ("training_prior", "linear_probe")]
    shown = sorted((s for s in shown if s.by_vote_entropy), key=_models_first)
    if not shown:
        return None
    groups = []
    for bin_ in shown[0].by_vote_entropy:
        span = (bin_.low_bits, bin_.high_bits)
        clips = "clip" if bin_.n_clips == 1 else "clips"
        rows = [
            Row(s.title, s.kind, b.jsd_bits)
            for s in shown
            for b in s.by_vote_entropy
            if (b.low_bits, b.high_bits) == span
        ]
        groups.append((f"Votes with {span[0]:g} to {span[1]:.2g} bits of entropy: {bin_.n_clips:,} {clips}", rows))
    return _forest("jsd_bits by the votes' entropy, lower is better, with 95% intervals", groups)


@dataclass(frozen=True)
class Uncertainty:
    """How one model's uncertainty compares with the listeners', over the clips it answered."""

    title: str
    scatter: Scatter
    bins: tuple[CalibrationBin, ...]
    correlation: Interval


def uncertainty(series: Series, clips: Sequence[ClipAnswers]) -> Uncertainty | None:
    """Entropy scatter and calibration of `series`; None when it gave no usable answer."""
    votes_NK, probs_NK = answered(series, clips)
    if not probs_NK:
        return None
    return Uncertainty(
        series.title,
        entropy_scatter(votes_NK, probs_NK),
        calibration(votes_NK, probs_NK),
        series.metrics["entropy_correlation"],
    )


def answered(series: Series, clips: Sequence[ClipAnswers]) -> tuple[list[tuple[int, ...]], list[tuple[float, ...]]]:
    """Votes and shares of the clips on which `series` gave a usable answer, side by side."""
    pairs = [(c.votes, c.answers[series.key].probabilities) for c in clips if series.key in c.answers]
    kept = [(votes, shares) for votes, shares in pairs if shares is not None]
    return [votes for votes, _ in kept], [shares for _, shares in kept]


@dataclass(frozen=True)
class MeanShares:
    """Per emotion: the listeners' mean share and one model's, over the clips that the model answered."""

    title: str
    n: int
    rows: tuple[tuple[str, float, float], ...]
    scale: float


def mean_shares(series: Series, clips: Sequence[ClipAnswers], emotions: Sequence[str]) -> MeanShares | None:
    """Does the model hand out each emotion as often as the listeners do? None when it gave no usable answer."""
    votes_NK, probs_NK = answered(series, clips)
    if not probs_NK:
        return None
    voted, predicted = normalize_votes(votes_NK).mean(axis=0), np.asarray(probs_NK).mean(axis=0)
    rows = tuple((e, float(v), float(q)) for e, v, q in zip(emotions, voted, predicted, strict=True))
    return MeanShares(series.title, len(probs_NK), rows, float(max(voted.max(), predicted.max())))
