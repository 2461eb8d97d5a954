"""SFT end to end on the trained checkpoint, as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from launch.sft import main
from reasoning.errors import ConfigError, ModelError
from reasoning.models.loading import add_adapter, load_model
from reasoning.training.run_folder import last_whole_checkpoint

CONFIG = str(Path(__file__).parents[3] / "launch" / "configs" / "sft.yaml")


def arguments(trained, out: Path, **changes) -> list[str]:
    options = {
        "config": CONFIG, "model_name_or_path": trained.model, "data": trained.corpus, "output_dir": out,
        "max_steps": 4, "logging_steps": 1, "save_steps": 2, "report_to": "none", "bf16": "false",
        "per_device_train_batch_size": 4, "lora_r": 4, "warmup_steps": 0, "save_total_limit": 5,
        "train_sampling_strategy": "random",
    } | changes  # fmt: skip
    return [part for key, value in options.items() for part in (f"--{key}", str(value))]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def finished(trained_checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("sft") / "run"
    main(arguments(trained_checkpoint, out))
    return out


def test_a_run_leaves_config_environment_metrics_with_both_terms_and_an_adapter_of_its_base(
    finished, trained_checkpoint
):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    for line in steps:
        assert float(line["loss"]) == pytest.approx(float(line["ce"]) + 0.3 * float(line["vote_kl"]), rel=0.05)
    assert json.loads((finished / "environment.json").read_text())["versions"]["trl"]
    assert (finished / "config.yaml").is_file()
    assert load_model(trained_checkpoint.model, finished).model.peft_config


def test_the_projector_and_only_language_model_layers_are_trained(finished):
    names = list(weights(finished))
    assert any("multi_modal_projector" in n for n in names)
    assert all("language_model" in n or "multi_modal_projector" in n for n in names)
    assert not any("audio_tower" in n for n in names)


def test_an_adapter_is_refused_on_another_base(finished, untrained_checkpoint):
    with pytest.raises(ModelError, match="was trained on"):
        load_model(untrained_checkpoint, finished)


def test_targets_inside_the_frozen_tower_are_an_error(trained_checkpoint):
    with pytest.raises(ModelError, match="frozen audio tower"):
        add_adapter(
            load_model(trained_checkpoint.model), r=2, alpha=4, dropout=0, train_projector=False,
            target_modules=r".*\.q_proj",
        )  # fmt: skip


def test_a_finished_run_is_kept_and_another_configuration_is_refused(finished, trained_checkpoint, capsys):
    before = (finished / "adapter_model.safetensors").stat().st_mtime_ns
    main(arguments(trained_checkpoint, finished))
    assert "nothing to do" in capsys.readouterr().out
    assert (finished / "adapter_model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match=r"another configuration \(kl_weight was 0.3, is 0.5"):
        main(arguments(trained_checkpoint, finished, kl_weight=0.5))


def test_a_killed_run_resumes_from_its_last_whole_checkpoint_to_the_same_adapter(
    finished, trained_checkpoint, tmp_path
):
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "launch.sft", *arguments(trained_checkpoint, out)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and last_whole_checkpoint(out) is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    if (out / "adapter_model.safetensors").exists():
        pytest.skip("the run finished before it could be killed")
    (out / "checkpoint-3").mkdir(exist_ok=True)  # what a kill in the middle of writing leaves
    main(arguments(trained_checkpoint, out))
    whole, resumed = weights(finished), weights(out)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.distributed
def test_two_ranks_give_the_one_process_result(trained_checkpoint, tmp_path):
    """Half the batch on each of two CPU ranks: the same clips, the same loss, the same adapter within rounding."""
    common = dict(max_steps=2, save_strategy="no", lora_r=2)
    one, two = tmp_path / "one", tmp_path / "two"
    main(arguments(trained_checkpoint, one, **common, per_device_train_batch_size=8))
    repository = Path(__file__).parents[3]
    launcher = [
        sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch",
        "--config_file", str(repository / "accelerate_configs" / "cpu.yaml"), "--main_process_port", "0",
    ]  # fmt: skip
    command = [*launcher, "-m", "launch.sft", *arguments(trained_checkpoint, two, **common)]
    subprocess.run(command, check=True, cwd=repository, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300)
    a, b = weights(one), weights(two)
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=2e-4, rtol=1e-2)
    losses = [
        [float(json.loads(x)["loss"]) for x in (run / "metrics.jsonl").read_text().splitlines() if '"loss"' in x]
        for run in (one, two)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
