"""The page about stages of training: a table, a plot and what may be said, as GitHub markdown beside an SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

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
_PANELS = ("jsd_bits", "brier")
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
        f"![jsd_bits and brier of every stage]({plot})",
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
    """An SVG: for each stage and readout the mean with its interval, and each seed's mean as a dot."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "equivox"  # the same figures give the same file
    from matplotlib import pyplot

    stages = found["stages"]
    figure, panels = pyplot.subplots(1, len(_PANELS), figsize=(9, 0.34 * len(stages) + 1.2), sharey=True)
    for axes, key in zip(panels, _PANELS, strict=True):
        for y, stage in enumerate(stages):
            metric = stage["metrics"][key]
            colour = {"label": "C0", "verbalized": "C1"}.get(stage["readout"], "0.4")
            if metric["low"] is not None:
                axes.plot([metric["low"], metric["high"]], [y, y], color=colour, linewidth=1.5)
            axes.plot(metric["seeds"], [y] * len(metric["seeds"]), ".", color=colour, alpha=0.5, markersize=4)
            axes.plot(metric["estimate"], y, "o", color=colour, markersize=6)
        axes.set_xlabel(f"{key} (lower is better)")
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(stages)), [stage["title"] for stage in stages])
    panels[0].invert_yaxis()
    figure.tight_layout()
    svg = io.StringIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    return svg.getvalue()
