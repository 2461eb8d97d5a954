"""Run folders -> scores.json and report.html, and the few lines that a command prints."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from reasoning.errors import EvaluationError
from reasoning.evaluation.comparisons import title
from reasoning.evaluation.predictions import pool, read_predictions
from reasoning.evaluation.record import PREDICTIONS, REPORT, SCORES, read_record
from reasoning.evaluation.report import write_report
from reasoning.evaluation.score import score
from reasoning.files import write_atomic


def write_results(out: Path, folders: Sequence[Path], *, max_clips: int = 40) -> dict[str, Any]:
    """Score the pooled runs in `folders`, write scores.json and report.html into `out`, and return the scores.

    Raises EvaluationError when a folder holds no run, or the runs cannot be pooled; nothing is written then.
    """
    records = [read_record(folder) for folder in folders]
    again = {(r.system, r.fold) for r in records}
    if len(again) < len(records):
        raise EvaluationError(f"{len(records)} runs hold only {len(again)} pairs of system and fold", field="runs",
                              cure="name each run once, and give each system its own --name")  # fmt: skip
    predictions = pool([read_predictions(folder / PREDICTIONS) for folder in folders])
    scores = score(predictions, records)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / SCORES, json.dumps(scores, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write_report(out / REPORT, scores, [asdict(line) for line in predictions], Path(records[0].audio_root), max_clips)
    return scores


def summary(scores: Mapping[str, Any]) -> str:
    """The scores as a table for the terminal, under the protocol and above what may be claimed."""
    protocol = scores["protocol"]
    lines = [
        f"{protocol['corpus']} ({protocol['statement']}), fold {protocol['folds']}",
        f"{protocol['n_clips']} test clips of {protocol['n_speakers']} speakers, {protocol['n_votes']} votes; "
        f"{protocol['subset']}",
        "",
        f"{'system':<34}{'jsd_bits [95%]':<24}{'nll_bits':>9}{'brier':>8}{'bc':>7}{'UA':>7}{'parsed':>9}",
    ]
    for system in scores["systems"]:
        m = system["metrics"]
        name = title((system["system"], system["readout"], system["control"]))
        ends = "" if m["jsd_bits"]["low"] is None else f" [{m['jsd_bits']['low']:.3f}, {m['jsd_bits']['high']:.3f}]"
        numbers = "".join(f"{_number(m[key]['estimate']):>{width}}" for key, width in _WIDTHS)
        parsed = f"{100 * system['parse_rate']['estimate']:.1f}%"
        lines.append(f"{name:<34}{m['jsd_bits']['estimate']:.3f}{ends:<19}{numbers}{parsed:>9}")
    claims = [c["sentence"] for c in scores["comparisons"] if c["kind"] in ("baseline", "system")]
    lines += ["", *claims, *([scores["few_speakers"]] if scores["few_speakers"] else [])]
    return "\n".join(lines)


_WIDTHS = (("nll_bits", 9), ("brier", 8), ("bc", 7), ("ua", 7))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
