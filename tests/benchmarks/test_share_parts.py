"""benchmarks/share_parts.py: the guide shows what was measured."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_guide_shows_the_table_that_was_measured():
    benchmark = runpy.run_path(str(ROOT / "benchmarks" / "share_parts.py"))
    record = json.loads((ROOT / "benchmarks" / "results" / "share_parts.json").read_text())
    assert benchmark["table"](record) in (ROOT / "docs" / "train.md").read_text()
