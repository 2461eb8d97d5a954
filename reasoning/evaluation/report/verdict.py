"""What the page claims, in words, from the scores alone.

A win is claimed only where the paired interval of jsd_bits is clear of zero and a proper score agrees; that rule lives
where comparisons are made, and `views.read_scores` refuses a verdict that its own interval contradicts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from reasoning.evaluation.comparisons import VERDICTS
from reasoning.evaluation.report.views import CONTROL_TITLES, Comparison, Scores, Series
from reasoning.evaluation.statistics import Interval

Tone = Literal["good", "bad", "unclear", "plain"]
TONES: dict[str, Tone] = {**dict.fromkeys(VERDICTS, "unclear"), "better": "good", "worse": "bad"}
READS = {
    "better": "better",
    "worse": "worse",
    "sharpening": "closer, but only by sharpening",
    "farther": "farther, but the proper scores do not agree",
    "ahead": "no difference by jsd_bits, better by a proper score",
    "behind": "no difference by jsd_bits, worse by a proper score",
    "unclear": "no difference shown",
}
"""`comparisons.VERDICTS`, in the words of the page."""


@dataclass(frozen=True)
class Tile:
    """One figure at a glance: a name, a number and what it means."""

    name: str
    figure: str
    note: str
    tone: Tone = "plain"


def number(value: float | None, digits: int = 3, signed: bool = False) -> str:
    """`value` for people: fixed digits, a true minus sign, an en dash where undefined."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    return text.replace("-", "−")


def interval(value: Interval, digits: int = 3, signed: bool = False) -> str:
    """`0.185 [0.176, 0.194]`, without brackets where there is no interval."""
    text = number(value.estimate, digits, signed)
    if not (math.isfinite(value.low) and math.isfinite(value.high)):
        return text
    return f"{text} [{number(value.low, digits, signed)}, {number(value.high, digits, signed)}]"


def joined(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def verdict(scores: Scores) -> str:
    """One sentence on the lead model against every baseline, with the figures it rests on."""
    lead = scores.lead
    if lead is None:
        return "No model was scored here: the page shows baselines only."
    against = [c for c in scores.comparisons if c.kind == "baseline" and c.system == lead.key]
    start = (
        f"On {lead.n_clips:,} test clips by {scores.n_speakers} {'speaker' if scores.n_speakers == 1 else 'speakers'}, "
        f"{lead.title} lies {interval(lead.metrics['jsd_bits'])} bits from the listeners' votes"
    )
    if not against:
        return f"{start}; it was compared with no baseline."
    named: dict[str, list[str]] = {name: [] for name in READS}
    for c in against:
        named[c.verdict].append(scores.by_key(c.versus).phrase)
    if len(named["better"]) == len(against):
        beaten = f"each of the {len(against)} baselines" if len(against) > 1 else named["better"][0]
        return f"{start}, closer than {beaten}: paired interval clear of zero, and a proper score agrees."
    parts = []
    if named["better"]:
        parts.append(f"closer than {joined(named['better'])} (interval clear of zero, a proper score agrees)")
    if named["sharpening"]:
        parts.append(f"closer than {joined(named['sharpening'])} only by sharpening, as the proper scores do not agree")
    if named["unclear"]:
        parts.append(f"not shown to differ from {joined(named['unclear'])}")
    if named["ahead"]:
        parts.append(f"not shown to differ from {joined(named['ahead'])} in jsd_bits and better by a proper score")
    if named["behind"]:
        parts.append(f"not shown to differ from {joined(named['behind'])} in jsd_bits and worse by a proper score")
    if named["farther"]:
        parts.append(f"farther away than {joined(named['farther'])}, though the proper scores do not agree")
    if named["worse"]:
        parts.append(f"worse than {joined(named['worse'])}")
    return f"{start}: {'; '.join(parts)}."


def tiles(scores: Scores) -> list[Tile]:
    """The figures at a glance: lead score, margin over the best baseline, controls, other models, parsing."""
    lead = scores.lead
    if lead is None:
        return []
    found = [_margin(scores, lead), _hearing(scores, lead), *_others(scores, lead), *_raters(scores, lead)]
    return [
        Tile(f"{lead.title}, jsd_bits", number(lead.metrics["jsd_bits"].estimate), _range(lead.metrics["jsd_bits"])),
        *(tile for tile in found if tile is not None),
        *_parsing(scores),
    ]


def _range(value: Interval) -> str:
    if not math.isfinite(value.low):
        return "no interval: fewer than two speakers"
    return f"95% interval {number(value.low)} to {number(value.high)}"


def _margin(scores: Scores, lead: Series) -> Tile | None:
    """The comparison with the baseline that scores best: the one that is hardest to beat."""
    against = [c for c in scores.comparisons if c.kind == "baseline" and c.system == lead.key]
    if not against:
        return None
    best = min(against, key=lambda c: scores.by_key(c.versus).metrics["jsd_bits"].estimate)
    return _difference(f"against the best baseline, {scores.by_key(best.versus).phrase}", best)


def _difference(name: str, c: Comparison) -> Tile:
    jsd = c.metrics["jsd_bits"]
    note = f"{READS[c.verdict]}; 95% interval {number(jsd.low, signed=True)} to {number(jsd.high, signed=True)}"
    return Tile(name, number(jsd.estimate, signed=True), note, TONES[c.verdict])


def _hearing(scores: Scores, lead: Series) -> Tile | None:
    """Does taking the right audio away hurt? Better than every control it was compared with, or not."""
    controls = [c for c in scores.comparisons if c.kind == "control" and c.system == lead.key]
    if not controls:
        return None
    names = [CONTROL_TITLES.get(scores.by_key(c.versus).control, scores.by_key(c.versus).control) for c in controls]
    losses = joined(
        [
            f"{n} {number(scores.by_key(c.versus).metrics['jsd_bits'].estimate)}"
            for n, c in zip(names, controls, strict=True)
        ]
    )
    if all(c.verdict == "better" for c in controls):
        return Tile("does it use the voice?", "Yes", f"without the right audio it is worse: {losses}", "good")
    weak = joined([n for n, c in zip(names, controls, strict=True) if c.verdict != "better"])
    return Tile("does it use the voice?", "Not shown", f"not shown to be better than with {weak}: {losses}", "bad")


def _others(scores: Scores, lead: Series) -> list[Tile]:
    """Paired differences of the lead from the other systems (GRPO against SFT, say), same readout."""
    found = []
    for c in scores.comparisons:
        a, b = scores.by_key(c.system), scores.by_key(c.versus)
        if c.kind == "system" and a == lead and b.readout == lead.readout and b.kind == "model":
            found.append(_difference(f"{a.system} against {b.system}, {a.readout}", c))
    return found


def _raters(scores: Scores, lead: Series) -> list[Tile]:
    if scores.raters is None or lead.key not in scores.raters.equivalents:
        return []
    text = scores.raters.equivalents[lead.key]
    return [Tile("worth how many listeners?", text, "raters whose pooled votes come as close to the remaining ones")]


def _parsing(scores: Scores) -> list[Tile]:
    """One tile: the last verbalized readout's rate as the figure, every system's in the note."""
    written = [s for s in scores.series if s.kind == "model" and s.readout == "verbalized"]
    if not written:
        return []
    rates = [f"{100 * s.parse_rate.estimate:.1f}%" for s in written]
    failed = joined([f"{s.n_failed} of {s.n_clips:,} by {s.system}" for s in written])
    return [Tile("written answers that parse", rates[-1], f"unusable, and scored as failures: {failed}")]
