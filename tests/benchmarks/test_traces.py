"""benchmarks/traces.py: the guide shows what was counted, and the counts are whole."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from launch.prepare import main

ROOT = Path(__file__).resolve().parents[2]
BENCHMARK = runpy.run_path(str(ROOT / "benchmarks" / "traces.py"))
RECORD = json.loads((ROOT / "benchmarks" / "results" / "traces.json").read_text())


def test_the_guide_shows_the_table_that_was_counted():
    assert BENCHMARK["table"](RECORD) in (ROOT / "docs" / "traces.md").read_text()


@pytest.mark.parametrize("who", RECORD["made"])
def test_every_clip_is_kept_rejected_or_without_a_trace(who):
    made = RECORD["made"][who]
    assert set(made["rejected"]) <= {"answer_contradicts"}, "one reason a trace, so that the counts add up"
    assert made["kept"] + sum(made["rejected"].values()) + made["no trace"] == RECORD["clips"]


def test_the_counts_are_what_the_command_prints(tmp_path, capsys):
    from data_builders.rows import read_corpus

    main(["studio", "--out", str(tmp_path), "--clips", "20"])
    counted = BENCHMARK["counts"](read_corpus(tmp_path), tmp_path)
    for who, option in (("votes not shown", []), ("`--show-votes`", ["--show-votes"])):
        capsys.readouterr()
        main(["cot", "--data", str(tmp_path), "--out", str(tmp_path / "traces.parquet"), "--workers", "1", *option])
        assert f"kept          {counted[who]['kept']} of 20" in capsys.readouterr().out
