"""launch/quickstart.sh with `equivox` recorded: which commands run, in which order, and what a second run repeats."""

import os
import subprocess
from pathlib import Path

import pytest

# Writes its arguments down, fails where $FAILS says so, and leaves what the real command leaves in its output folder.
EQUIVOX = """#!/usr/bin/env bash
echo "$*" >> "$EQUIVOX_CALLS"
[ -z "$FAILS" ] || case "$*" in *"$FAILS"*) exit 2 ;; esac
said="$*"
while [ $# -gt 0 ]; do
    case "$1" in --out | --output_dir) mkdir -p "$2" && cd "$2" && touch corpus.json adapter_model.safetensors ;; esac
    shift
done
[[ "$said" != evaluate* ]] || echo "$said" >predictions.jsonl
"""


class Clone:
    def __init__(self, home: Path) -> None:
        self.home, self.log = home, home.parent / "calls"

    def quickstart(
        self, *options: str, fails: str = "", cwd: str = "/"
    ) -> tuple[subprocess.CompletedProcess, list[str]]:
        self.log.write_text("")
        done = subprocess.run(
            ["bash", str(self.home / "launch" / "quickstart.sh"), *options],
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "EQUIVOX_CALLS": str(self.log), "FAILS": fails, "CI": "true"},
        )
        return done, self.log.read_text().splitlines()


@pytest.fixture
def clone(recorded_clone) -> Clone:
    return Clone(recorded_clone("quickstart.sh", EQUIVOX))


def names(calls: list[str]) -> list[str]:
    return [call.split()[0] for call in calls]


def test_the_stages_run_in_order_and_the_end_names_the_report(clone: Clone):
    done, calls = clone.quickstart()
    assert done.returncode == 0, done.stderr
    assert names(calls) == ["prepare", "seed", "sft", "sft", "grpo", *["evaluate"] * 4, "score"]
    assert calls[0] == "prepare studio --out data/studio"
    assert "--adapter runs/studio/fold0/sft --share_target readout" in calls[3]
    assert "--adapter runs/studio/fold0/own --output_dir runs/studio/fold0/grpo" in calls[4]
    assert [call.split("--name ")[1].split()[0] for call in calls[5:9]] == ["base", "sft", "sft+own", "grpo"]
    assert f"{clone.home}/runs/studio/report/report.html" in done.stdout
    assert "simulated raters" in done.stdout


def test_every_stage_is_a_command_that_exists(clone: Clone):
    from launch.cli import COMMANDS

    _, calls = clone.quickstart()
    assert set(names(calls)) <= set(COMMANDS)


def test_the_options_are_the_ones_that_evaluate_and_score_take(clone: Clone):
    from launch.evaluate import parser

    _, calls = clone.quickstart()
    asked = [parser().parse_args(call.split()[1:]) for call in calls if call.startswith("evaluate ")]
    assert [options.name for options in asked] == ["base", "sft", "sft+own", "grpo"]


def test_a_second_run_keeps_what_is_finished(clone: Clone):
    clone.quickstart()
    done, calls = clone.quickstart()
    assert done.returncode == 0
    assert names(calls) == ["prepare", "seed"], "these two look for themselves what there is to reuse"
    assert done.stdout.count("kept: ") == 8


def test_an_interrupted_run_goes_on_at_the_stage_that_failed(clone: Clone):
    done, calls = clone.quickstart(fails="grpo --config")
    assert done.returncode == 2
    assert names(calls) == ["prepare", "seed", "sft", "sft", "grpo"]
    done, calls = clone.quickstart()
    assert done.returncode == 0
    assert names(calls) == ["prepare", "seed", "grpo", *["evaluate"] * 4, "score"]


@pytest.mark.parametrize(
    ("changed", "to"), [("launch/configs/sft.yaml", "seed: 8"), ("data/studio/corpus.json", ' "clips_sha256": "f00"')]
)
def test_a_run_of_other_inputs_is_not_passed_off_as_this_one(clone: Clone, changed: str, to: str):
    clone.quickstart()
    with (clone.home / changed).open("a") as file:
        file.write(f"{to}\n")
    done, _ = clone.quickstart()
    assert done.returncode == 2
    assert "runs/studio/fold0/sft was made by another" in done.stderr
    assert clone.quickstart("--name", "other")[0].returncode == 0


def test_the_same_clips_from_files_that_were_touched_change_nothing(clone: Clone):
    clone.quickstart()
    (clone.home / "data/studio/corpus.json").write_text(' "root": "elsewhere",\n "audio listing": "other times"\n')
    done, calls = clone.quickstart()
    assert done.returncode == 0, done.stderr
    assert names(calls) == ["prepare", "seed"]


def test_a_comment_in_a_config_changes_nothing(clone: Clone):
    clone.quickstart()
    config = clone.home / "launch/configs/sft.yaml"
    config.write_text("# mine\n\n" + config.read_text().replace("seed: 7", "seed: 7  # lucky"))
    done, calls = clone.quickstart()
    assert done.returncode == 0
    assert names(calls) == ["prepare", "seed"]


def test_more_folds_keep_the_first_and_write_the_report_again(clone: Clone):
    clone.quickstart()
    done, calls = clone.quickstart("--folds", "2")
    assert done.returncode == 0, done.stderr
    assert [call for call in calls if "fold0/sft --" in call or "--fold 0" in call] == []
    assert calls[-1].startswith("score runs/studio/fold0/eval_base")
    assert "runs/studio/fold1/eval_grpo --out" in calls[-1]


def test_more_readouts_are_asked_of_what_is_trained_already(clone: Clone):
    clone.quickstart()
    done, calls = clone.quickstart("--readouts", "label,guided_mean")
    assert done.returncode == 0, done.stderr
    assert names(calls) == ["prepare", "seed", "evaluate", "evaluate", "score"]
    assert all("--readouts label,guided_mean" in call for call in calls if call.startswith("evaluate"))


def test_folds_are_run_one_after_the_other_and_pooled(clone: Clone, tmp_path: Path):
    (tmp_path / "CREMA D").mkdir()
    done, calls = clone.quickstart("--corpus", "crema_d", "--root", "CREMA D", "--folds", "2", cwd=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert calls[0] == f"prepare crema_d --root {tmp_path}/CREMA D --out data/crema_d"
    assert [call.split("--fold ")[1][0] for call in calls if call.startswith("grpo")] == ["0", "1"]
    assert calls[-1].count("/eval_") == 8
    assert "--markdown" not in calls[-1]


def test_readme_is_only_written_when_asked(clone: Clone):
    _, calls = clone.quickstart("--readme")
    assert calls[-1].endswith("--markdown README.md")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--corpus", "crema_d"], "--root"),
        (["--corpus", "crema_d", "--root", "/nowhere"], "--root"),
        (["--corpus", "iemocap"], "iemocap"),
        (["--root", "/"], "crema_d"),
        (["--epochs", "3"], "--epochs"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(clone: Clone, options: list[str], word: str):
    done, calls = clone.quickstart(*options)
    assert done.returncode == 2
    assert word in done.stderr
    assert calls == []


def test_help_is_the_head_of_the_file(clone: Clone):
    done, calls = clone.quickstart("--help")
    assert done.returncode == 0
    assert done.stdout.startswith("The main job")
    assert "--folds" in done.stdout
    assert calls == []
