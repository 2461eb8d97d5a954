"""A run folder is read as it is: growing, half-written, stopped, finished, or no run at all."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from reasoning.errors import ConfigError
from reasoning.training.run_reader import distinct_clips, metric_lines, newest_rollout, read_run

CONFIG = {"max_steps": 10, "num_train_epochs": 3.0, "num_generations": 4, "data": "data/none"}


def write_run(folder: Path, lines=(), config=CONFIG) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if lines:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def table(folder: Path, step: int, clips: list[str]) -> Path:
    path = folder / "completions" / f"completions_{step:05d}.parquet"
    path.parent.mkdir(exist_ok=True)
    pd.DataFrame({"clip": clips, "completion": [f"{c} said" for c in clips]}).to_parquet(path)
    return path


def test_a_run_that_has_not_begun_has_no_step_no_rate_and_no_rollout(tmp_path):
    run = read_run(write_run(tmp_path))
    assert (run.kind, run.step, run.steps, run.lines, run.rollout, run.finished) == ("grpo", 0, 10, [], [], False)
    assert run.seconds_a_step is run.seconds_left is run.written is run.rollout_step is None


def test_rate_and_time_left_come_from_when_lines_were_written_and_a_pause_does_not_count(tmp_path):
    at = [100.0, 104.0, 108.0, 90_000.0, 90_004.0]  # stopped for a day after the third step
    lines = [{"step": i + 1, "loss": 1.0, "time": t, "step_time": 99.0} for i, t in enumerate(at)]
    run = read_run(write_run(tmp_path, lines))
    assert run.seconds_a_step == 4.0
    assert run.seconds_left == 20.0


def test_lines_that_count_several_steps_and_the_summary_at_the_end_are_understood(tmp_path):
    lines = [{"step": s, "loss": 0.1, "time": 2.0 * s} for s in (2, 4, 6)]
    lines.append({"step": 6, "train_runtime": 500.0, "time": 12.5})
    assert read_run(write_run(tmp_path, lines)).seconds_a_step == 2.0
    untimed = [{"step": s, "step_time": t} for s, t in ((1, 9.0), (2, 5.0), (3, 6.0))]
    assert read_run(write_run(tmp_path, untimed)).seconds_a_step == 6.0
    only_a_summary = [{"step": 5, "loss": 1.0}, {"step": 5, "train_runtime": 50.0}]
    assert read_run(write_run(tmp_path, only_a_summary)).seconds_a_step == 10.0


def test_where_epochs_decide_the_number_of_steps_follows_from_the_first_line(tmp_path):
    config = {"max_steps": -1, "num_train_epochs": 3.0}
    assert read_run(write_run(tmp_path, config=config)).steps is None
    run = read_run(write_run(tmp_path, [{"step": 10, "epoch": 0.125}], config))
    assert (run.kind, run.steps) == ("sft", 240)


@given(st.integers(0, 400))
def test_a_metrics_file_cut_anywhere_gives_its_whole_lines(tmp_path_factory, cut):
    lines = [{"step": i, "loss": 0.5, "note": "é"} for i in range(10)]
    whole = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    path = tmp_path_factory.mktemp("cut") / "metrics.jsonl"
    path.write_bytes(whole[:cut])
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    assert metric_lines(path) == [line for line, end in zip(lines, ends, strict=True) if end <= cut]


def test_numbers_that_are_none_or_not_finite_are_left_out_of_a_series(tmp_path):
    lines = [{"step": 1, "kl": 1.5}, {"step": 2, "kl": None}, {"step": 3, "kl": math.nan}, {"step": 4, "kl": 2}]
    run = read_run(write_run(tmp_path, lines))
    assert run.series("kl") == [1.5, 2.0]
    assert run.series("never") == []
    assert run.names("k.") == ["kl"]


def test_a_completions_table_that_is_being_written_gives_way_to_the_one_before(tmp_path):
    write_run(tmp_path)
    table(tmp_path, 9, ["a", "a", "b", "b"])
    newest = table(tmp_path, 10, ["c"])
    assert newest_rollout(tmp_path)[0] == 10
    data = newest.read_bytes()
    for size in (0, 3, len(data) // 2, len(data) - 1):
        newest.write_bytes(data[:size])
        step, rows = newest_rollout(tmp_path)
        assert step == 9
        assert [row["completion"] for row in distinct_clips(rows, 5)] == ["a said", "b said"]


def test_a_folder_that_is_no_run_is_one_error_that_names_a_run_inside_it(tmp_path):
    write_run(tmp_path / "fold0" / "sft")
    with pytest.raises(ConfigError, match=r"fold0\] is no training run: .* equivox watch .*fold0/sft"):
        read_run(tmp_path / "fold0")
    for folder in (tmp_path / "nowhere", tmp_path / "empty"):
        with pytest.raises(ConfigError, match=r"holds no config\.yaml.*--output_dir"):
            read_run(folder)


def test_reading_loads_no_torch():
    code = "import sys, reasoning.training.run_reader; print({'torch', 'transformers', 'trl'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"
