"""The page about stages of training: a table, a plot and what may be said, as GitHub markdown beside an SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from reasoning.evaluation.comparisons import NON_INFERIORITY_MARGIN
from reasoning.evaluation.markdown import escape
from reasoning.evaluation.predictions import SAMPLES
from reasoning.evaluation.stages import SAID

_METRICS = {
    "jsd_bits": "jsd_bits ↓",
    "nll_bits": "nll_bits ↓",
    "brier": "brier ↓",
    "closeness": "verbalized closeness ↑",
    "parsed": "parsed ↑",
    "grounding": "grounding, its sound ↑",
    "grounding_swapped": "grounding, another's",
    "grounding_heard": "grounding, difference ↑",
    "forced": "thinking cut ↓",
    "tokens": "tokens",
}
_COLOURS = {"label": "C0", "verbalized": "C1"}
_FARTHEST = 0.6
"""Where the plot's scale of jsd_bits ends: a third above what one rater scores on CREMA-D."""
_STEP = 0.1
"""Where its scale of differences ends: ten of the margins that matter."""
_RULES = (
    "Verbalized closeness is 1 - jsd_bits of the written Shares; an answer that cannot be read scores as badly as "
    "possible. Grounding is the share of the Voice line's claims that are true, by the clip's own measured cues and by "
    "those of another speaker's clip with the same sentence: only the difference tells of hearing; a clip of which "
    "nothing could be measured is left out. Thinking cut: answers whose thinking had no end and was closed by force "
    f"before the label was read out. Tokens are of one written answer, of which guided_mean takes {SAMPLES} a clip. "
    "Minutes are of the stage's own training (DPO's with sampling its pairs), in the run that ended it."
)
_POOLING = (
    "Seeds are pooled by the clip: a clip's score is the mean over seeds, and the 95% intervals are clustered by "
    "speaker (delete-one-speaker jackknife, Student's t). They say how figures would vary with other speakers; the "
    "range of the seeds' own means stands in braces. A+B is stage B on top of A and is compared with A."
)


def stages_markdown(found: Mapping[str, Any], made_by: str, plot: str, notes: Sequence[str] = ()) -> str:
    """The whole page. made_by: the command. plot: the SVG's name. notes: sentences to stand under the verdicts."""
    about = f"{found['n_clips']} test clips of {found['n_speakers']} speakers"
    parts = [
        "# Results: what each stage of training adds",
        f"Made by `{made_by}`; {escape(found['statement'])}. {about}; {escape(found['protocol'])}.",
        f"![jsd_bits of every stage, and its difference from the stage that it stands on]({plot})",
        _table(found),
        _people(found["human"]),
        f"{_POOLING} {_RULES}",
        "## What may be said",
        "\n".join(f"- **{kind}** ({escape(rule)}): {_listed(found['said'][kind])}" for kind, rule in SAID.items()),
        "Each difference with the figures that it rests on:",
        "\n".join(f"- {escape(c['sentence'])}" for c in found["comparisons"]),
        *(escape(note) for note in (*notes, found["few_speakers"]) if note),
    ]
    return "\n\n".join(parts) + "\n"


def _listed(titles: Sequence[str]) -> str:
    return escape(", ".join(titles)) or "none"


def _people(human: Mapping[str, Any]) -> str:
    floor = human["sampling_floor"]["estimate"]
    text = f"Human reference points, jsd_bits: vote sampling alone costs an oracle {floor:.3f}"
    if human["raters"]:
        raters = ", ".join(f"{k}: {interval['estimate']:.3f}" for k, interval in human["raters"].items())
        text += f"; raters against the remaining votes, by number of raters, {raters} ({human['n_rated']} clips)"
    return f"{text}."


def _table(found: Mapping[str, Any]) -> str:
    shown = [key for key in _METRICS if any(key in stage["metrics"] for stage in found["stages"])]
    heads = ["stage", *(_METRICS[key] for key in shown), "minutes"]
    rows = [_row(heads), "|---" * len(heads) + "|"]
    for stage in found["stages"]:
        cells = [_cell(stage["metrics"].get(key), key) for key in shown]
        minutes = "–" if stage["minutes"] is None else f"{stage['minutes']:.1f}"
        rows.append(_row([escape(stage["title"]), *cells, minutes]))
    return "\n".join(rows)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(metric: Mapping[str, Any] | None, key: str) -> str:
    """Estimate, interval and, from two seeds on, the lowest and highest seed."""
    if metric is None:
        return "–"
    digits = 0 if key == "tokens" else 3
    text = f"{metric['estimate']:.{digits}f}"
    if key == "tokens":
        return text
    if metric["low"] is not None:
        text += f" [{metric['low']:.3f}, {metric['high']:.3f}]"
    if len(metric["seeds"]) > 1:
        text += f" {{{min(metric['seeds']):.3f}–{max(metric['seeds']):.3f}}}"
    return text


def stages_plot(found: Mapping[str, Any]) -> str:
    """An SVG: jsd_bits of each stage and readout with its interval and each seed's mean as a stroke, beside it the
    difference from the stage that it stands on. What lies off a scale stands as a figure at its edge."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "equivox"  # the same figures give the same file
    from matplotlib import pyplot

    stages, differences = found["stages"], {(c["stage"], c["readout"]): c["metrics"] for c in found["comparisons"]}
    figure, (levels, steps) = pyplot.subplots(
        1, 2, figsize=(11, 0.3 * len(stages) + 1.6), sharey=True, layout="constrained"
    )
    levels.set_yticks(range(len(stages)), [stage["title"] for stage in stages])
    levels.set_ylim(len(stages) - 0.5, -0.5)
    _scale(levels, 0, _FARTHEST, "jsd_bits (lower is better)")
    _scale(steps, -_STEP, _STEP, "jsd_bits minus those of the stage it stands on")
    steps.set_xticks([-_STEP, -_STEP / 2, 0, _STEP / 2, _STEP])
    for name, bits, style in _marks(found):
        levels.axvline(bits, color="0.5", linewidth=1, linestyle=style, label=f"{name}, {bits:.3f}")
    steps.axvline(0, color="0.5", linewidth=1)
    margin = NON_INFERIORITY_MARGIN
    steps.axvspan(-margin, margin, color="0.9", label=f"within {margin:g}: too little to matter")
    for y, stage in enumerate(stages):
        colour = _COLOURS.get(stage["readout"], "0.4")
        _point(levels, y, stage["metrics"]["jsd_bits"], colour)
        if (difference := differences.get((stage["name"], stage["readout"]))) is not None:
            _point(steps, y, difference["jsd_bits"], colour)
    for axes in (levels, steps):
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, fontsize=8, frameon=False)
    svg = io.StringIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    return svg.getvalue()


def _marks(found: Mapping[str, Any]) -> list[tuple[str, float, str]]:
    """(name, jsd_bits, line style) of what every stage is read against."""
    human = found["human"]
    priors = [stage["metrics"]["jsd_bits"] for stage in found["stages"] if stage["name"] == "training_prior"]
    marks = [("training prior", prior["estimate"], "--") for prior in priors]
    if human["raters"]:
        most = max(human["raters"])
        marks.append((f"{most} raters", human["raters"][most]["estimate"], "-."))
    return [*marks, ("vote sampling alone", human["sampling_floor"]["estimate"], ":")]


def _scale(axes: Any, low: float, high: float, label: str) -> None:
    axes.set_xlim(low, high)
    axes.set_xlabel(label)
    axes.grid(axis="x", alpha=0.3)


def _point(axes: Any, y: int, metric: Mapping[str, Any], colour: str) -> None:
    """An estimate with its interval and seeds, or, off the scale, an arrow and the figure."""
    low, high = axes.get_xlim()
    estimate = metric["estimate"]
    if not low <= estimate <= high:
        edge, side = (high, "right") if estimate > high else (low, "left")
        axes.plot(edge, y, ">" if side == "right" else "<", color=colour, markersize=7, clip_on=False)
        beside = (-8 if side == "right" else 8, 0)
        style = {"ha": side, "va": "center", "fontsize": 8, "color": colour}
        axes.annotate(f"{estimate:.3f}", (edge, y), beside, textcoords="offset points", **style)
        return
    if metric["low"] is not None:
        axes.plot([metric["low"], metric["high"]], [y, y], color=colour, linewidth=1.5)
    seeds = metric.get("seeds", [])
    axes.plot(seeds, [y] * len(seeds), "|", color=colour, alpha=0.7, markersize=9)
    axes.plot(estimate, y, "o", color=colour, markersize=5)
