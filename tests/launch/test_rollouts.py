"""`equivox grpo` with vLLM in the trainer's process, by the command that users type."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from launch.rollouts import RolloutArguments, check_vllm, number_type
from reasoning.errors import ConfigError

REPOSITORY = Path(__file__).parents[2]


def grpo(trained, out: Path, ranks: int = 1, **changes) -> subprocess.CompletedProcess[str]:
    options = {
        "config": REPOSITORY / "launch" / "configs" / "grpo.yaml", "model_name_or_path": trained.model,
        "data": trained.corpus, "output_dir": out, "use_vllm": "true", "max_steps": 3, "save_steps": 2,
        "report_to": "none", "bf16": "false", "num_generations": 4, "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2, "lora_r": 4, "warmup_steps": 0, "min_reward_spread": 0.0,
        "save_total_limit": 5, "learning_rate": 1e-3, "train_projector": "true", "temperature": 1.0,
    } | changes  # fmt: skip
    command = [sys.executable, "-m", "launch.grpo"]
    if ranks > 1:
        launcher = ["-m", "accelerate.commands.accelerate_cli", "launch", "--main_process_port", "0", "--num_processes"]
        config = REPOSITORY / "accelerate_configs" / "cpu.yaml"
        command[1:1] = [*launcher, str(ranks), "--config_file", str(config)]
    for key, value in options.items():
        command += [f"--{key}", str(value)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # adapters are compared bit by bit
    return subprocess.run(command, cwd=REPOSITORY, env=environment, timeout=900, capture_output=True, text=True)


def lines(out: Path) -> list[dict[str, Any]]:
    read = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in read if "loss" in line]


def texts(out: Path, step: int) -> list[tuple[str, str]]:
    table = pq.read_table(out / "completions" / f"completions_{step:05d}.parquet").to_pylist()
    return [(row["clip"], row["completion"]) for row in table]


def adapter(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def finished(trained_checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("vllm") / "run"
    run = grpo(trained_checkpoint, out)
    assert run.returncode == 0, run.stderr[-3000:]
    return out


@pytest.mark.vllm
@pytest.mark.slow
def test_a_run_logs_what_each_sync_moved_and_how_near_rollouts_are_to_the_trainer(finished, trained_checkpoint):
    weights = load_file(trained_checkpoint.model / "model.safetensors")
    adapted = [
        w for n, w in weights.items() if n.startswith("language_model.model.layers") and n.endswith("_proj.weight")
    ]
    logged = lines(finished)
    assert [line["step"] for line in logged] == [1, 2, 3]
    for line in logged:
        assert line["sync/bytes"] == sum(w.nbytes for w in adapted)
        assert 0 < line["sync/seconds"] < 60
        assert 0 < line["rollout/gap_mean"] <= line["rollout/gap_max"] < 0.01
        assert line["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=0.05)
        assert line["reward"] > 0.5, "what a model that hears samples is rewarded"


@pytest.mark.vllm
@pytest.mark.slow
def test_an_interrupted_run_samples_the_same_again_and_ends_at_the_same_adapter(finished, trained_checkpoint, tmp_path):
    resumed = tmp_path / "run"
    shutil.copytree(finished, resumed, ignore=shutil.ignore_patterns("checkpoint-3", "completions_00003.parquet"))
    (resumed / "adapter_model.safetensors").unlink()
    run = grpo(trained_checkpoint, resumed)
    assert run.returncode == 0, run.stderr[-3000:]
    assert texts(resumed, 3) == texts(finished, 3)
    assert len(set(texts(finished, 3))) > 8
    a, b = adapter(finished), adapter(resumed)
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.vllm
@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("cut", [1, 2], ids=["a vLLM each", "one vLLM between them"])
def test_two_ranks_sample_what_one_rank_samples(finished, trained_checkpoint, tmp_path, cut):
    out = tmp_path / "run"
    changes = {"per_device_train_batch_size": 4, "max_steps": 2, "vllm_tensor_parallel_size": cut}
    run = grpo(trained_checkpoint, out, ranks=2, **changes)
    assert run.returncode == 0, run.stderr[-3000:]
    assert sorted(texts(out, 1)) == sorted(texts(finished, 1))
    assert all(line["rollout/gap_max"] < 0.01 for line in lines(out))


@pytest.fixture(scope="module")
def server(serve, trained_checkpoint, tmp_path_factory):
    """Options of a training that a real server samples for."""
    folder = tmp_path_factory.mktemp("weights")
    running = serve("--model", trained_checkpoint.model, "--rollouts", folder)
    return {"vllm_mode": "server", "vllm_server_base_url": running.url, "rollouts_folder": folder}


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize("transport", ["file", "broadcast"])
def test_a_server_samples_what_vllm_in_the_process_samples(finished, trained_checkpoint, server, tmp_path, transport):
    """Its own tower hears the sound, and a trained projector is among what it is sent."""
    run = grpo(trained_checkpoint, tmp_path / "run", max_steps=2, rollouts_transport=transport, **server)
    assert run.returncode == 0, run.stderr[-3000:]
    assert texts(tmp_path / "run", 1) == texts(finished, 1)
    here, there = lines(finished), lines(tmp_path / "run")
    projector = sum(w.nbytes for n, w in adapter(finished).items() if "projector" in n)
    for line, other in zip(there, here, strict=False):
        assert line["sync/bytes"] == other["sync/bytes"] + projector
        assert line["rollout/gap_max"] < 0.01


@pytest.mark.vllm
@pytest.mark.slow
def test_with_several_updates_a_rollout_and_another_loss_the_weights_are_sent_once_a_rollout(
    trained_checkpoint, tmp_path
):
    out = tmp_path / "run"
    run = grpo(
        trained_checkpoint, out, num_iterations=2, loss_type="grpo", beta=0.05, max_steps=4, save_steps=4,
        vllm_importance_sampling_mode="token_truncate", scale_rewards="group",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    logged = lines(out)
    assert ["sync/bytes" in line for line in logged] == [True, False, True, False]
    assert logged[1]["kl"] > logged[0]["kl"] == pytest.approx(0, abs=1e-6)


@pytest.mark.vllm
@pytest.mark.gpu
@pytest.mark.slow
def test_with_sleep_mode_a_gpu_is_shared_and_rollouts_stay_near_the_trainer(trained_checkpoint, tmp_path):
    out = tmp_path / "run"
    run = grpo(trained_checkpoint, out, use_cpu="false", vllm_enable_sleep_mode="true", vllm_gpu_memory_utilization=0.2)
    assert run.returncode == 0, run.stderr[-3000:]
    assert all(line["rollout/gap_mean"] < 0.01 for line in lines(out))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"vllm_mode": "server"}, r"rollouts_folder: is missing.*equivox serve --rollouts"),
        ({"vllm_tensor_parallel_size": 2}, "is 2, which does not divide the 1 ranks"),
        ({"generation_kwargs": {"do_sample": False}}, "generation_kwargs: is not passed to vLLM"),
        ({"vllm_structured_outputs_regex": "a+"}, "vllm_structured_outputs_regex: is not passed to vLLM"),
        ({"loss_type": "vespo"}, "is sequence_mask, but loss_type vespo needs token_truncate or token_mask"),
        ({"fsdp": "full_shard"}, "fsdp: cuts the weights up"),
        ({"deepspeed_plugin": SimpleNamespace(zero_stage=3)}, "deepspeed: cuts the weights up"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_rollouts_would_not_follow_is_refused(change, says):
    args = grpo_config()
    asked = SimpleNamespace(**{**vars(args), "world_size": args.world_size, **change})
    with pytest.raises(ConfigError, match=says):
        check_vllm(asked, RolloutArguments())
    asked.use_vllm = False
    check_vllm(asked, RolloutArguments())


@pytest.mark.parametrize(
    ("mode", "option", "value", "says"),
    [
        ("server", "vllm_gpu_memory_utilization", 0.5, "start `equivox serve` with --gpu-memory-utilization instead"),
        ("server", "vllm_enable_sleep_mode", True, "--enable-sleep-mode"),
        ("server", "vllm_tensor_parallel_size", 2, "--tensor-parallel-size"),
        ("server", "vllm_max_model_length", 512, "--max-model-len"),
        ("server", "vllm_model_impl", "transformers", "--model-impl"),
        ("server", "vllm_server_timeout", 60.0, "is not read: a server is waited for"),
        ("server", "vllm_group_port", 51217, "is not read: no transport of weights listens"),
        ("colocate", "vllm_server_base_url", "http://127.0.0.1:8000", "is of a server, .* add vllm_mode: server"),
        ("colocate", "vllm_server_host", "127.0.0.1", "is of a server"),
        ("colocate", "vllm_server_port", 8001, "is of a server"),
        ("colocate", "vllm_server_timeout", 60.0, "is not read"),
        ("colocate", "vllm_group_port", 51217, "is not read"),
        ("colocate", "rollouts_folder", "/dev/shm/x", "is of a server"),
        ("colocate", "rollouts_transport", "broadcast", "is of a server"),
    ],
)
def test_an_option_that_nothing_in_this_mode_reads_is_refused(mode, option, value, says):
    from trl import GRPOConfig

    ours = {"rollouts_folder": "/dev/shm/x"} if mode == "server" else {}
    theirs: dict[str, Any] = {"vllm_mode": mode}
    check_vllm(grpo_config(**theirs), RolloutArguments(**ours))
    (theirs if option in {f.name for f in fields(GRPOConfig)} else ours)[option] = value
    with pytest.raises(ConfigError, match=rf"^{option}: .*{says}"):
        check_vllm(grpo_config(**theirs), RolloutArguments(**ours))


def test_a_servers_host_and_port_are_read_without_its_base_url_only():
    rollout = RolloutArguments(rollouts_folder="/dev/shm/x")
    alone = {"vllm_mode": "server", "vllm_server_port": 8001}
    check_vllm(grpo_config(**alone), rollout)
    with pytest.raises(ConfigError, match=r"^vllm_server_port: is not read beside vllm_server_base_url"):
        check_vllm(grpo_config(**alone, vllm_server_base_url="http://127.0.0.1:8000"), rollout)


def test_an_unknown_transport_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match=r"^rollouts_transport: is 'nccl', expected file or broadcast"):
        RolloutArguments(rollouts_transport="nccl")


def grpo_config(**options: Any) -> Any:
    from trl import GRPOConfig

    return GRPOConfig("unused", use_vllm=True, use_cpu=True, bf16=False, report_to=[], **options)


@pytest.mark.parametrize(("device", "bf16", "expected"), [
    ("cuda", True, "bfloat16"), ("cuda", False, "float32"), ("cpu", True, "float32"), ("cpu", False, "float32"),
])  # fmt: skip
def test_a_colocated_vllm_computes_in_bfloat16_on_a_gpu_only(monkeypatch, device, bf16, expected):
    monkeypatch.setattr("reasoning.models.loading.best_device", lambda: torch.device(device))
    assert number_type(SimpleNamespace(bf16=bf16), "float32") == expected
