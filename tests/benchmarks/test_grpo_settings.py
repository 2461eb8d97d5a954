"""benchmarks/grpo_settings.py: the guide shows what was measured, and a run's end is read from what it logged."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARK = runpy.run_path(str(ROOT / "benchmarks" / "grpo_settings.py"))
RESULTS = ROOT / "benchmarks" / "results" / "grpo_settings.json"


def test_the_guide_shows_the_table_that_was_measured():
    assert BENCHMARK["table"](json.loads(RESULTS.read_text())) in (ROOT / "docs" / "train.md").read_text()


def test_the_end_of_a_run_is_the_mean_of_its_last_steps(tmp_path):
    steps = [
        {"step": n, "rewards/closeness/mean": n / 10, "parse_rate": n / 20, "entropy": 1.0 / n} for n in range(1, 8)
    ]
    lines = [*steps, {"step": 7, "train_runtime": 3.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    end = BENCHMARK["end_of"](tmp_path)
    assert end["steps"] == 7
    assert end["closeness"] == pytest.approx(0.55)
    assert end["parsed"] == pytest.approx(0.275)
