"""The report: one HTML file that needs nothing but itself, made from scores and predictions."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from reasoning.evaluation.metrics import LOWER_IS_BETTER, METRICS, PROPER
from reasoning.evaluation.predictions import WRITTEN
from reasoning.evaluation.report import panels, views
from reasoning.evaluation.report.clips import clip_cards
from reasoning.evaluation.report.verdict import READS, interval, number, tiles, verdict
from reasoning.files import write_atomic

PACKAGE = "reasoning.evaluation.report"


def write_report(
    out_html: Path,
    scores: dict[str, Any],
    predictions: list[dict[str, Any]],
    audio_root: Path,
    max_clips: int = 40,
) -> None:
    """Write the report of `scores` (a parsed scores.json) to `out_html`: a single file, no request to anywhere.

    predictions: the parsed lines of predictions.jsonl; test lines of the models are shown. audio_root: what their
    `audio` paths are relative to. max_clips: clips with a player and the model's words (0: none). Everything that
    comes from data or model is escaped. Raises EvaluationError on missing keys, AudioError on audio that cannot be
    read, StorageError on a full disk; nothing is written then.
    """
    html = render(scores, predictions, audio_root, max_clips)
    # Lone surrogates are legal in JSON strings and impossible in UTF-8: they become "?".
    write_atomic(out_html, html.encode("utf-8", errors="replace"))


def render(
    scores: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]], audio_root: Path, max_clips: int
) -> str:
    """The page as text; see `write_report`."""
    view = views.read_scores(scores)
    clips = views.read_clips(predictions, view)
    script, style = _asset("report.js"), _asset("style.css")
    models = [s for s in view.series if s.kind == "model"]
    found = [(panels.uncertainty(s, clips), panels.mean_shares(s, clips, view.emotions)) for s in models]
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            view=view,
            corpus=view.corpus,
            statement=view.statement,
            systems=list(dict.fromkeys(s.system for s in models)),
            parsed=[s for s in models if s.readout in WRITTEN],
            verdict=verdict(view),
            tiles=tiles(view),
            headline=panels.headline_forest(view),
            raters=panels.rater_forest(view),
            equivalents=panels.rater_equivalents(view),
            differences=panels.differences(view),
            entropy_bins=panels.entropy_bin_forest(view),
            uncertainty=[u for u, _ in found if u is not None],
            shares=[m for _, m in found if m is not None],
            cards=clip_cards(view, clips, audio_root, max_clips),
            n_test_clips=len(clips),
            script=Markup(script),
            style=Markup(style),
            # The page may run this script and no other, wherever a string of the data ends up.
            script_sha256=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )


def _asset(name: str) -> str:
    return (files(PACKAGE) / "templates" / name).read_text(encoding="utf-8")


def _field_label(key: str) -> str:
    """A protocol field for people: `n_clips` -> `clips`."""
    return key.removeprefix("n_").replace("_", " ")


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(PACKAGE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, interval=interval, field_label=_field_label)
    environment.globals.update(
        metrics=METRICS,
        metric_titles=views.METRIC_TITLES,
        lower_is_better=LOWER_IS_BETTER,
        reading=lambda comparison: READS[comparison.verdict],
        short_metrics=("jsd_bits", *PROPER),
        group_titles=panels.GROUP_TITLES,
    )
    return environment
