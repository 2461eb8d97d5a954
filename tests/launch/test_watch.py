"""What `equivox watch` shows of a run, as a page for logs and live in a real terminal."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import yaml

from launch.cli import run
from launch.watch import SPARKS, main, spark

GRPO = {"max_steps": 4, "num_train_epochs": 3.0, "num_generations": 4, "model_name_or_path": "models/seed", "fold": 2}
LOGGED = {
    "loss": 0.25, "vote_kl": 0.125, "reward": 0.5, "reward_std": 0.0625, "rewards/closeness/mean": 0.75,
    "rewards/closeness/std": 0.3125, "rewards/mine/mean": 7.0, "rewards/mine/std": 0.0, "reward_spread": 0.875,
    "groups/quiet": 0.375, "parse_rate": 0.625, "problems/bad_sum": 0.25, "problems/truncated": 0.0,
    "slots/missing": 0.015625, "completions/clipped_ratio": 0.046875, "completions/mean_length": 57.5,
    "entropy": 1.125, "clip_ratio/region_mean": 0.03125, "kl": 0.0078125, "learning_rate": 2e-4, "grad_norm": 1.5,
    "epoch": 0.1, "num_tokens": 9.0,
}  # fmt: skip
SHOWN = {
    "loss": "0.250", "vote KL, nats a clip": "0.125", "reward": "0.500 ± 0.062", "closeness": "0.750 ± 0.312",
    "mine": "7.000 ± 0.000", "reward spread": "0.875", "quiet groups": "0.375", "parse rate": "0.625",
    "bad_sum": "0.250", "answers without a vote": "0.016", "answers cut off": "0.047", "tokens an answer": "57.500",
    "entropy, nats a token": "1.125", "clipped share": "0.031", "KL to the reference": "0.008",
    "learning rate": "0.0002", "gradient norm": "1.500",
}  # fmt: skip


def write_run(folder: Path, lines: list[dict], config: dict) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def completions(folder: Path, step: int, rows: list[dict]) -> None:
    (folder / "completions").mkdir(exist_ok=True)
    pd.DataFrame(rows).to_parquet(folder / "completions" / f"completions_{step:05d}.parquet")


def page(folder: Path, capsys, monkeypatch) -> str:
    monkeypatch.setenv("COLUMNS", "120")
    assert main([str(folder), "--once"]) == 0
    return capsys.readouterr().out


def rows_of(text: str) -> dict[str, str]:
    """Title -> last value of each metric on the page."""
    found = (re.match(r"\s*(\S.*?)\s{2,}(\S.*?)\s{2,}[" + SPARKS + "]", line) for line in text.splitlines())
    return {match[1]: match[2] for match in found if match}


def test_everything_a_grpo_run_logs_is_shown_and_problems_only_where_they_occurred(tmp_path, capsys, monkeypatch):
    now = time.time()
    lines = [{"step": s, **LOGGED, "time": now - 60 + 20 * s} for s in (1, 2, 3)]
    text = page(write_run(tmp_path / "grpo", lines, GRPO), capsys, monkeypatch)
    assert rows_of(text) == SHOWN
    assert "grpo of models/seed" in text
    assert "fold 2" in text
    assert re.search(r"step 3 of 4 .*20\.0 s a step .*0:00:20 left", text)


def test_the_gap_between_trainer_and_rollouts_is_shown_when_it_is_logged(tmp_path, capsys, monkeypatch):
    lines = [{"step": 1, "loss": 0.1, "rollout/gap_mean": 0.0625, "sync/bytes": 2.5e6}]
    text = page(write_run(tmp_path / "grpo", lines, GRPO), capsys, monkeypatch)
    assert rows_of(text)["rollout gap, nats, mean"] == "0.062"
    assert rows_of(text)["weight sync, bytes"] == "2.5e+06"


def test_loss_terms_of_sft_and_dpo_are_shown(tmp_path, capsys, monkeypatch):
    sft = [{"step": 10, "loss": 2.5, "ce": 1.75, "trace_ce": 1.25, "vote_kl": 0.75, "mean_token_accuracy": 0.5}]
    text = page(write_run(tmp_path / "sft", sft, {"max_steps": -1, "num_train_epochs": 1.0}), capsys, monkeypatch)
    assert rows_of(text) == {
        "loss": "2.500", "CE, nats a token": "1.750", "of the traces": "1.250",
        "vote KL, nats a clip": "0.750", "token accuracy": "0.500",
    }  # fmt: skip
    dpo = [{"step": 1, "loss": 0.5, "rewards/chosen": 0.25, "rewards/margins": 0.125, "rewards/accuracies": 1.0}]
    text = page(write_run(tmp_path / "dpo", dpo, {"max_steps": 4, "pairs": "p.parquet"}), capsys, monkeypatch)
    assert rows_of(text)["implicit margins"] == "0.125"
    assert "dpo of" in text


def test_an_answer_stands_beside_its_votes_and_what_it_was_paid(tmp_path, capsys, monkeypatch, tone_corpus):
    folder = write_run(tmp_path / "grpo", [{"step": 1, **LOGGED}], {**GRPO, "data": str(tone_corpus)})
    read = {"completion": "<answer>Vote: sad", "shares": [0.0, 0, 0, 0, 0.25, 0.75], "problems": ""}
    unread = {"completion": "no\x1b[2J[red]answer[/red]", "shares": None, "problems": "no_answer"}
    votes, paid = {"votes": [0, 0, 0, 0, 2, 6]}, {"closeness": 0.75, "mine": 7.0, "advantage": -0.5}
    rows = [{"clip": c, **said, **votes, **paid} for c, said in (("c1", read), ("c1", unread), ("c2", unread))]
    completions(folder, 1, rows)
    text = page(folder, capsys, monkeypatch)
    first, second = text.split("answers of step 1")[1].split("c2  ")
    assert "closeness 0.750  mine 7.000  advantage -0.500" in first
    assert re.search(r"sad +██████ +6 +██████ +0\.75", first), "six of eight, and 0.75 of eight characters"
    assert re.search(r"neutral +██ +2 +██ +0\.25", first)
    assert "<answer>Vote: sad" in first
    assert "no_answer" in second
    assert re.search(r"sad +██████ +6 *$", second, re.M), "nothing could be read, so no shares are drawn"
    assert "[red]answer[/red]" in second
    assert "\x1b" not in text


def test_a_run_that_fell_silent_or_has_not_begun_or_is_finished_says_so(tmp_path, capsys, monkeypatch):
    lines = [{"step": s, "loss": 0.1, "time": 1000.0 + s} for s in (1, 2)]
    folder = write_run(tmp_path / "run", lines, GRPO)
    os.utime(folder / "metrics.jsonl", (time.time() - 7200,) * 2)
    assert "nothing for 2:00:0" in page(folder, capsys, monkeypatch)
    (folder / "adapter_model.safetensors").touch()
    assert "finished" in page(folder, capsys, monkeypatch)
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "config.yaml").write_text(yaml.safe_dump(GRPO))
    assert "no step is logged yet" in page(begun, capsys, monkeypatch)


def test_a_run_that_logs_every_tenth_step_is_not_called_silent_between_two_lines(tmp_path, capsys, monkeypatch):
    lines = [{"step": s, "loss": 0.1, "time": 1000.0 + s} for s in (10, 20)]
    folder = write_run(tmp_path / "run", lines, {**GRPO, "logging_steps": 10})
    os.utime(folder / "metrics.jsonl", (time.time() - 25,) * 2)
    assert "if it was stopped" not in page(folder, capsys, monkeypatch)
    os.utime(folder / "metrics.jsonl", (time.time() - 35,) * 2)
    assert "if it was stopped" in page(folder, capsys, monkeypatch)


def test_a_folder_that_is_no_run_is_one_line_and_status_2(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        run(main, [str(tmp_path), "--once"])
    assert left.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_watching_writes_nothing(tmp_path, capsys, monkeypatch):
    folder = write_run(tmp_path / "run", [{"step": 1, **LOGGED}], GRPO)
    completions(folder, 1, [{"clip": "a", "completion": "x", "votes": [1, 2], "shares": None}])
    files = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}
    page(folder, capsys, monkeypatch)
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()} == files


def test_the_last_steps_stay_in_sight_in_a_narrow_window(tmp_path, capsys, monkeypatch):
    lines = [{"step": s, "rewards/a_reward_of_a_long_name/mean": float(s == 100)} for s in range(1, 101)]
    monkeypatch.setenv("COLUMNS", "60")
    assert main([str(write_run(tmp_path / "run", lines, GRPO)), "--once"]) == 0
    assert "▁" * 19 + "█ " in capsys.readouterr().out


def test_a_sparkline_runs_from_the_lowest_to_the_highest_value():
    assert spark([0, 1, 0.5, 1]) == "▁█▅█"
    assert spark([3, 3]) == "▁▁"


def test_in_a_terminal_it_follows_the_run_to_its_end_and_leaves_on_interrupt(tmp_path):
    """A real terminal, and files that grow while it looks."""
    folder = write_run(tmp_path / "run", [{"step": 1, "loss": 0.5}], GRPO)

    def watching() -> tuple[subprocess.Popen[bytes], int]:
        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "launch.watch", str(folder), "--every", "0.05"]
        environment = {**os.environ, "COLUMNS": "120", "LINES": "50", "TERM": "xterm-256color"}
        # A test run in the background ignores interrupts, and would hand that on.
        interruptible = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
        process = subprocess.Popen(command, **streams, env=environment, preexec_fn=interruptible)
        os.close(theirs)
        return process, ours

    def read_until(terminal: int, text: str) -> None:
        seen = ""
        while text not in seen:
            seen += os.read(terminal, 65536).decode(errors="replace")

    process, terminal = watching()
    read_until(terminal, "step 1 of 4")
    with (folder / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 2, "loss": 0.25}\n{"step": 3, "lo')
    read_until(terminal, "step 2 of 4")
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(OSError):  # a terminal whose program has left
        while os.read(terminal, 65536):
            pass
    assert process.wait(60) == 0

    process, terminal = watching()
    read_until(terminal, "step 2 of 4")
    (folder / "adapter_model.safetensors").touch()
    read_until(terminal, "finished")
    assert process.wait(60) == 0
