"""What the training commands share: rows of the right speakers, and ranks that know of each other."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import struct
import subprocess
import sys
from importlib.util import find_spec
from os import environ
from pathlib import Path
from types import SimpleNamespace

import pytest
from trl import GRPOConfig

import launch.training
from data_builders.rows import read_corpus
from launch import HOME
from launch.arguments import DataArguments, ModelArguments
from launch.training import check_ranks, check_saving, check_trackers, load_for_training, training_rows
from reasoning.errors import ConfigError
from reasoning.models.loading import add_adapter, load_model


def test_rows_are_the_training_speakers_of_the_fold_and_no_others(tone_corpus):
    corpus = read_corpus(tone_corpus)
    for fold in range(5):
        _, rows = training_rows(DataArguments(data=str(tone_corpus), fold=fold))
        held_out = {c.speaker for c in corpus.clips if c.fold == fold}
        assert rows
        assert not held_out & {row["speaker"] for row in rows}
    assert len(training_rows(DataArguments(data=str(tone_corpus), limit=7))[1]) == 7


def test_runs_on_two_parts_of_the_speakers_share_none_of_them(tone_corpus):
    parts = [training_rows(DataArguments(data=str(tone_corpus), speakers=part))[1] for part in ("0:0.7", "0.7:1")]
    first, second = ({row["speaker"] for row in rows} for rows in parts)
    assert len(first) > len(second) > 0
    assert not first & second
    with pytest.raises(ConfigError, match="speakers: is '7', expected FROM:TO"):
        DataArguments(data=str(tone_corpus), speakers="7")


def test_a_rank_that_believes_it_is_alone_is_stopped(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_ranks(SimpleNamespace(world_size=2))
    with pytest.raises(ConfigError, match=r"2 ranks were launched, but this one sees 1\. To mend: set use_cpu: true"):
        check_ranks(SimpleNamespace(world_size=1))


@pytest.mark.parametrize("train_projector", [False, True])
def test_the_projector_of_a_given_adapter_goes_on_training_only_where_asked(
    untrained_checkpoint, tmp_path, train_projector
):
    fresh = add_adapter(load_model(untrained_checkpoint), r=2, alpha=4, dropout=0.0, train_projector=True)
    fresh.model.save_pretrained(tmp_path)
    model = ModelArguments(str(untrained_checkpoint), adapter=str(tmp_path), train_projector=train_projector)
    again = load_for_training(model, SimpleNamespace(world_size=1, seed=0, trust_remote_code=False))
    trained = {name for name, p in again.model.named_parameters() if p.requires_grad}
    expected = {name for name, p in fresh.model.named_parameters() if p.requires_grad}
    assert trained == {name for name in expected if train_projector or ".lora_" in name}
    assert trained < expected or train_projector


def test_a_projector_that_an_adapter_does_not_bring_cannot_go_on_training(untrained_checkpoint, tmp_path):
    fresh = add_adapter(load_model(untrained_checkpoint), r=2, alpha=4, dropout=0.0, train_projector=False)
    fresh.model.save_pretrained(tmp_path)
    model = ModelArguments(str(untrained_checkpoint), adapter=str(tmp_path), train_projector=True)
    with pytest.raises(ConfigError, match="train_projector: has no projector to go on with"):
        load_for_training(model, SimpleNamespace(world_size=1, seed=0, trust_remote_code=False))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"lora_r": 4}, "lora_r: is 4, but .* was made with 2 and stays as it is"),
        ({"lora_alpha": 8}, "lora_alpha: is 8, but .* was made with 4"),
        ({"lora_dropout": 0.1}, "lora_dropout: is 0.1, but"),
        ({"lora_target_modules": ".*v_proj"}, "lora_target_modules: is .*v_proj, but"),
        ({"lora_r": 2, "lora_alpha": 4}, None),
        ({"lora_r": 16, "lora_alpha": 32}, None),  # the defaults of a config that was written for any adapter
    ],
)
def test_an_adapter_that_goes_on_keeps_its_shape_and_an_option_that_asks_for_another_is_refused(
    untrained_checkpoint, tmp_path, options, says
):
    fresh = add_adapter(load_model(untrained_checkpoint), r=2, alpha=4, dropout=0.0, train_projector=False)
    fresh.model.save_pretrained(tmp_path)
    model = ModelArguments(str(untrained_checkpoint), adapter=str(tmp_path), **options)
    args = SimpleNamespace(world_size=1, seed=0, trust_remote_code=False)
    with contextlib.nullcontext() if says is None else pytest.raises(ConfigError, match=says):
        assert load_for_training(model, args).model.peft_config["default"].r == 2


UNEVEN = {"gradient_accumulation_steps": 4, "steps_per_generation": 6}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_iterations": 2, "save_steps": 7}, r"save after step 7, .*\(one serves 4 micro-steps.*takes 2\)"),
        ({"num_iterations": 2, "save_steps": 7}, "To mend: set it to 6 or 8"),
        ({"steps_per_generation": 6, "save_steps": 4}, "save after step 4, .*set it to 3 or 6"),
        ({"steps_per_generation": 6, "save_steps": 1}, "To mend: set it to 3$"),
        ({"steps_per_generation": 8, "num_iterations": 3, "save_steps": 0.3, "max_steps": 30}, "0.3, .*12$"),
        ({**UNEVEN, "save_steps": 4, "max_steps": 48}, "step 4, .*3 or 6"),
        # The first epoch ends with half a step, so the rollouts of the second begin elsewhere: 51 would be in one.
        ({**UNEVEN, "save_steps": 3, "max_steps": 60}, "step 51, .*set it to 12$"),
        ({"num_iterations": 2, "enable_jit_checkpoint": True, "save_steps": 6}, "enable_jit_checkpoint: would save"),
    ],
)
def test_a_save_that_would_cut_a_rollout_is_refused_with_the_nearest_that_do_not(tmp_path, changes, says):
    with pytest.raises(ConfigError, match=says):
        check_saving(grpo_config(tmp_path, **changes), 400)


@pytest.mark.parametrize(
    "changes",
    [
        {"save_steps": 1},
        {"save_steps": 7, "steps_per_generation": 1},
        {"num_iterations": 2, "save_steps": 6},
        {"num_iterations": 2, "save_steps": 500},
        {"num_iterations": 2, "save_steps": 7, "save_strategy": "epoch"},
        {"num_iterations": 2, "save_steps": 7, "save_strategy": "no"},
        {"steps_per_generation": 6, "save_steps": 0.25, "max_steps": 24},
        {"enable_jit_checkpoint": True},
    ],
)
def test_a_save_between_two_rollouts_at_the_end_or_never_is_allowed(tmp_path, changes):
    check_saving(grpo_config(tmp_path, **changes), 400)


def test_fewer_clips_than_one_rollout_takes_are_refused(tmp_path):
    check_saving(grpo_config(tmp_path), 4)
    with pytest.raises(
        ConfigError, match="generation_batch_size: 3 training clips are fewer than the 4 of one rollout"
    ):
        check_saving(grpo_config(tmp_path), 3)


def grpo_config(folder, **changes) -> GRPOConfig:
    """One rollout of 4 clips an optimizer step of 2 micro-steps, unless changed."""
    options = {"num_generations": 4, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2,
               "max_steps": 60, "use_cpu": True, "bf16": False}  # fmt: skip
    return GRPOConfig(str(folder), **options | changes)


def test_a_tracker_that_is_not_installed_is_named_before_anything_is_loaded(monkeypatch):
    check_trackers(["tensorboard"])
    monkeypatch.setattr(launch.training, "find_spec", lambda name: None if name == "trackio" else object())
    check_trackers(["wandb", "tensorboard"])
    with pytest.raises(ConfigError, match=r"report_to: trackio is not installed\. To mend: pip install trackio"):
        check_trackers(["tensorboard", "trackio"])


def told_wandb(folder: Path) -> list[dict[str, float]]:
    """What an offline run of wandb keeps: records of its protocol buffers in LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    data, at, whole, found = file.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if 32_768 - at % 32_768 < 7:  # no room for a header: the block is padded
            at += 32_768 - at % 32_768
            continue
        size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole, at = whole + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # a record in one piece, or its last piece
            items = Record.FromString(whole).history.item
            found += [{"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}] if items else []
            whole = b""
    return found


def told_trackio(folder: Path) -> list[dict[str, float]]:
    with contextlib.closing(sqlite3.connect(folder / "huggingface.db")) as base:
        return [json.loads(line) for (line,) in base.execute("SELECT metrics FROM metrics ORDER BY id")]


@pytest.mark.parametrize(("tracker", "told"), [("wandb", told_wandb), ("trackio", told_trackio)])
def test_a_tracker_is_told_what_metrics_jsonl_holds(untrained_checkpoint, tone_corpus, tmp_path, tracker, told):
    """A real run beside the real tracker, offline: in a process of its own, since both read the environment once."""
    if find_spec(tracker) is None:
        pytest.skip(f"needs {tracker}, which is not installed: pip install {tracker}")
    out = tmp_path / "run"
    options = {
        "config": HOME / "launch/configs/sft.yaml", "model_name_or_path": untrained_checkpoint, "data": tone_corpus,
        "output_dir": out, "max_steps": 2, "logging_steps": 1, "warmup_steps": 0, "bf16": "false", "lora_r": 2,
        "per_device_train_batch_size": 4, "report_to": tracker,
    }  # fmt: skip
    command = [sys.executable, "-m", "launch.sft", *(str(x) for k, v in options.items() for x in (f"--{k}", v))]
    places = {"WANDB_DIR": str(tmp_path), "WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path)}
    subprocess.run(command, check=True, cwd=HOME, env={**environ, **places}, timeout=600)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = {line["step"]: line for line in lines if "loss" in line}
    heard = {line["train/global_step"]: line for line in told(tmp_path) if "train/loss" in line}
    assert steps.keys() == heard.keys() == {1, 2}
    for step, line in steps.items():
        assert {"ce", "vote_kl", "mean_token_accuracy"} <= line.keys()
        for name in line.keys() - {"step", "time"}:
            assert heard[step][f"train/{name}"] == pytest.approx(float(line[name])), name


def test_a_misspelt_option_is_named_before_any_value_is_judged():
    from launch.sft import main

    with pytest.raises(ConfigError, match=r"--confg: is not a known option\. To mend: did you mean --config\?"):
        main(["--confg", "launch/configs/sft.yaml"])
