"""Paired differences between systems on identical clips, and the one sentence that each of them allows.

jsd_bits is the headline but no proper score: a sharper guess can lower it without knowing more. So "beats" is said only
where the interval of jsd_bits is clear of zero, a proper score's interval is clear on the same side, and none is clear
on the other. Where jsd_bits shows no difference, what the proper scores show is said all the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from reasoning.evaluation.metrics import METRICS, PROPER
from reasoning.evaluation.predictions import WRITTEN, Series
from reasoning.evaluation.statistics import Additive, Interval, difference_of, jackknife_interval

NON_INFERIORITY_MARGIN = 0.01
"""jsd_bits by which a system may be worse than another and still count as no worse."""

VERDICTS = {
    "better": "jsd_bits is clearly lower, a proper score (nll_bits, brier) agrees and none says the opposite",
    "worse": "the same the other way round",
    "sharpening": "jsd_bits is clearly lower, and the proper scores do not agree",
    "farther": "jsd_bits is clearly higher, and the proper scores do not agree",
    "ahead": "no difference shown in jsd_bits, and better by the proper scores",
    "behind": "no difference shown in jsd_bits, and worse by the proper scores",
    "unclear": "no difference shown",
}
"""What may be said of one system against another, and the rule. Clearly: the paired interval is clear of zero."""


class Comparable(Protocol):
    """What a comparison needs of a scored series."""

    @property
    def series(self) -> Series: ...
    @property
    def key(self) -> str: ...
    @property
    def speakers(self) -> Sequence[str]: ...
    @property
    def metrics(self) -> Mapping[str, Additive]: ...
    @property
    def tempered(self) -> Mapping[str, Additive] | None: ...


def compare_all(scored: Sequence[Comparable]) -> list[dict[str, Any]]:
    """Every comparison that a reader needs, most wanted first; see `pairs`."""
    return [compare(a, b, kind) for a, b, kind in pairs(scored)]


def pairs(scored: Sequence[Comparable]) -> list[tuple[Comparable, Comparable, str]]:
    """(system, versus, kind) for every comparison.

    Models against baselines, models among each other (the later against the earlier, same readout), written
    answers against label, each model against its own controls, and controls against sentence_only.
    """
    models = [s for s in scored if s.series[1] != "none" and s.series[2] == "none"]
    controls = [s for s in scored if s.series[2] != "none"]
    baselines = [s for s in scored if s.series[1] == "none"]
    found = [(m, b, "baseline") for m in models for b in baselines]
    found += [
        (late, early, "system")
        for i, late in enumerate(models)
        for early in models[:i]
        if late.series[1] == early.series[1]
    ]
    found += [
        (a, b, "readout")
        for a in models
        for b in models
        if a.series[0] == b.series[0] and a.series[1] in WRITTEN and b.series[1] == "label"
    ]
    found += [(m, c, "control") for m in models for c in controls if m.series[:2] == c.series[:2]]
    found += [(c, b, "control") for c in controls for b in baselines if b.series[0] == "sentence_only"]
    return found


def compare(a: Comparable, b: Comparable, kind: str) -> dict[str, Any]:
    """One entry of scores.json's `comparisons`: differences a - b, the verdict and its sentence."""
    differences = _differences(a.metrics, b.metrics, a.speakers)
    tempered = None
    if a.tempered is not None and b.tempered is not None:
        tempered = _differences(a.tempered, b.tempered, a.speakers)
    return {
        "system": a.key,
        "versus": b.key,
        "kind": kind,
        "metrics": {name: interval.to_dict() for name, interval in differences.items()},
        "tempered": None if tempered is None else {name: interval.to_dict() for name, interval in tempered.items()},
        "verdict": verdict_of(differences),
        "non_inferior": bool(differences["jsd_bits"].high < NON_INFERIORITY_MARGIN),
        "sentence": sentence(title(a.series), title(b.series), differences, tempered, kind),
    }


def verdict_of(differences: Mapping[str, Interval]) -> str:
    """Which of VERDICTS paired differences in jsd_bits and the proper scores allow."""
    jsd = differences["jsd_bits"]
    sides = {differences[name].high < 0 for name in PROPER if differences[name].clear_of_zero}
    if len(sides) == 1 and not jsd.clear_of_zero:
        return "ahead" if sides == {True} else "behind"
    if not jsd.clear_of_zero:
        return "unclear"
    if jsd.high < 0:
        return "better" if sides == {True} else "sharpening"
    return "worse" if sides == {False} else "farther"


def sentence(
    a: str,
    b: str,
    differences: Mapping[str, Interval],
    tempered: Mapping[str, Interval] | None,
    kind: str = "baseline",
) -> str:
    """What may be said of a against b, with the figures that it rests on. a, b: their titles."""
    jsd = differences["jsd_bits"]
    figures = "; ".join(f"{name} {_figure(differences[name])}" for name in ("jsd_bits", *PROPER))
    if tempered is not None:
        figures += f"; jsd_bits after the dev temperature {_figure(tempered['jsd_bits'])}"
    lower = " and ".join(name for name in PROPER if differences[name].high < 0)
    higher = " and ".join(name for name in PROPER if differences[name].low > 0)
    said = {
        "better": f"{a} beats {b}",
        "worse": f"{b} beats {a}",
        "sharpening": f"{a} has lower jsd_bits than {b}, but {_but(higher, 'higher')}: the gain counts as sharpening",
        "farther": f"{a} has higher jsd_bits than {b}, but {_but(lower, 'lower')}: {b} may merely be sharper",
        "ahead": f"no clear difference in jsd_bits between {a} and {b}, but {a} has clearly lower {lower}",
        "behind": f"no clear difference in jsd_bits between {a} and {b}, but {a} has clearly higher {higher}",
        "unclear": f"no clear difference between {a} and {b}",
    }[verdict_of(differences)]
    if kind == "system" and jsd.high >= 0:  # whoever has lower jsd_bits need not be shown to be no worse
        most = "is at most" if jsd.high < NON_INFERIORITY_MARGIN else "may be more than"
        said += f"; {a} {most} {NON_INFERIORITY_MARGIN:g} jsd_bits worse"
    return f"{said} ({a} minus {b}: {figures})."


def _but(opposite: str, side: str) -> str:
    if not opposite:
        return "no proper score agrees"
    return f"{opposite} {'are' if ' and ' in opposite else 'is'} clearly {side}"


def title(series: Series) -> str:
    """How a sentence calls a series: `sft label`, `sft label (shuffled)`, `training_prior`."""
    system, readout, control = series
    name = system if readout == "none" else f"{system} {readout}"
    return name if control == "none" else f"{name} ({control})"


def _differences(a: Mapping[str, Additive], b: Mapping[str, Additive], speakers: Sequence[str]) -> dict[str, Interval]:
    return {name: jackknife_interval(difference_of(a[name], b[name]), speakers) for name in METRICS}


def _figure(interval: Interval) -> str:
    ends = f"[{interval.low:+.3f}, {interval.high:+.3f}]" if np.isfinite(interval.low) else "(no interval)"
    return f"{interval.estimate:+.3f} {ends}"
