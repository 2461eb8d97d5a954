"""What the training commands share: corpus rows, the model ready to train, and the resolved configuration."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from data_builders.folds import some_speakers
from data_builders.rows import Corpus, read_corpus, split_clips
from data_builders.traces.trace_file import by_whom, read_trace_rows
from launch.arguments import DataArguments, ModelArguments
from launch.lineage import check_held_out
from reasoning.errors import ConfigError, CorpusError
from reasoning.models.loading import Loaded, add_adapter, best_device, load_model
from reasoning.training.run_folder import is_finished, start_run
from reasoning.training.run_reader import ADAPTER
from reasoning.training.schedule import RolloutSchedule

UNRECORDED = ("output_dir", "logging_dir", "local_rank", "hub_token", "run_name", "disable_tqdm", "report_to")
"""Options that may differ between a run and its continuation."""


def training_rows(data: DataArguments, adapter: str | None = None) -> tuple[Corpus, list[dict[str, Any]]]:
    """The corpus and the training clips of the fold, as the flat rows that trainers and rewards take.

    Raises ConfigError where the adapter to go on with has heard speakers whom this fold holds out.
    """
    corpus = read_corpus(Path(data.data))
    check_held_out(adapter, corpus, data.fold, data.folds)
    clips = some_speakers(split_clips(corpus, data.fold, data.folds)["train"], data.speakers)
    clips = clips[: data.limit] if data.limit else clips
    if not clips:
        raise CorpusError(f"no training clips in fold {data.fold}", row=data.data)
    rows = [
        {
            **clip.extra,
            "id": clip.id,
            "audio": str((corpus.root / clip.audio).resolve()),
            "transcript": clip.transcript,
            "speaker": clip.speaker,
            "sex": clip.sex,
            "age": clip.age,
            "language": clip.language,
            "intended": clip.intended,
            "source": clip.source,
            "synthesizer": clip.synthesizer,
            "duration_s": clip.duration_s,
            "n_votes": clip.n_votes,
            "votes": list(clip.votes),
            "emotions": list(corpus.info.emotions.names),
            "length": round(clip.duration_s * 100),
        }
        for clip in clips
    ]
    return corpus, rows


def with_thinking(rows: list[dict[str, Any]], corpus: Corpus, level: str, traces: str | None) -> list[dict[str, Any]]:
    """The rows with the verified `thinking` of a trace file; those without a verified trace are left out and counted.
    Prints that count, who wrote the traces and whether the writer saw the votes.

    Raises ConfigError unless traces are given exactly for level think: there is no placeholder for reasoning.
    """
    if traces is None:
        if level == "think":
            cure = "make one with `equivox prepare cot --data CORPUS --out FILE`, or choose level no_think"
            raise ConfigError("is missing: level think is trained to write it", field="traces", cure=cure)
        return rows
    if level != "think":
        raise ConfigError(f"is for level think, not {level}", field="traces", cure="leave it out, or add --level think")
    verified = {trace.id: trace for trace in read_trace_rows(Path(traces), corpus) if trace.verdict == "kept"}
    kept = [{**row, "thinking": verified[row["id"]].thinking} for row in rows if row["id"] in verified]
    if not kept:
        raise CorpusError(f"has no verified trace of the {len(rows)} training clips", row=traces, field="traces")
    by = sorted({by_whom(verified[row["id"]].writer, verified[row["id"]].saw_votes) for row in kept})
    print(f"{len(kept)} of {len(rows)} training clips have a verified trace; the others are left out")
    print(f"traces by {', '.join(by)}")
    return kept


def open_run(args: Any, corpus: Corpus, *options: Any) -> bool:
    """Start or continue the run in args.output_dir under these options; False where it is already finished."""
    check_trackers(args.report_to)
    folder = Path(args.output_dir)
    if args.process_index == 0:
        given = {"world_size": args.world_size, "clips_sha256": corpus.fingerprint, **checksums(options)}
        config = resolved(*map(asdict, options), args.to_dict(), given)
        start_run(folder, config, resolved(*map(defaults_of, options), given))
    if is_finished(folder):
        print(f"{folder} already holds the finished adapter; nothing to do")
        return False
    return True


def checksums(options: Sequence[Any]) -> dict[str, str]:
    """sha256 of what lies where options point, so that no run goes on from another adapter or with other pairs.

    What is not there has none: whoever reads it says so.
    """
    named = {field.name: getattr(part, field.name) for part in options for field in fields(part)}
    found = {}
    for name in ("adapter", "traces", "gold_traces", "pairs"):
        path = Path(named.get(name) or "")
        path = path / ADAPTER if name == "adapter" else path
        if named.get(name) and path.is_file():
            with path.open("rb") as stream:
                found[f"{name}_sha256"] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def defaults_of(options: Any) -> dict[str, Any]:
    """Option -> its default, of those that have one."""
    return {field.name: field.default for field in fields(options) if field.default is not MISSING}


def load_for_training(model: ModelArguments, args: Any) -> Loaded:
    """The checkpoint with a trainable adapter: the given one, or a fresh one made from args.seed.

    A projector that a given adapter brings goes on training only where train_projector says so.
    """
    check_ranks(args)
    if best_device().type == "cpu":
        # accelerate imports DeepSpeed, where it is installed, to unwrap any model. Told that there is no accelerator,
        # DeepSpeed does not look for one and warn that it found none.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    torch.manual_seed(args.seed)
    loaded = load_model(
        model.model_name_or_path,
        model.adapter,
        trainable=True,
        dtype=getattr(torch, model.dtype),
        attn_implementation=model.attn_implementation,
        trust_remote_code=args.trust_remote_code,
    )
    if model.adapter is not None:
        check_adapter_shape(model, loaded.model.peft_config["default"])
        if not model.train_projector:
            loaded.projector.requires_grad_(False)
        elif not any(p.requires_grad for p in loaded.projector.parameters()):
            cure = f"leave it out: {model.adapter} was trained without a projector of its own"
            raise ConfigError("has no projector to go on with", field="train_projector", cure=cure)
        return loaded
    return add_adapter(
        loaded,
        r=model.lora_r,
        alpha=model.lora_alpha,
        dropout=model.lora_dropout,
        train_projector=model.train_projector,
        target_modules=model.lora_target_modules,
    )


def check_adapter_shape(model: ModelArguments, made_with: Any) -> None:
    """Raise ConfigError where an option asks the adapter that is trained further for a shape that it does not have.

    made_with: its peft configuration. What stands at its default is not asked for: a config written for one rank may go
    on with an adapter of another.
    """
    names = {"lora_r": "r", "lora_target_modules": "target_modules"}
    for name, default in defaults_of(model).items():
        value = getattr(model, name)
        if not name.startswith("lora_") or value in (default, its := getattr(made_with, names.get(name, name))):
            continue
        what = f"is {value}, but {model.adapter} was made with {its} and stays as it is"
        raise ConfigError(what, field=name, cure="leave it out, or train without --adapter")


def resolved(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """The options that decide a run's result, plain enough for YAML."""
    merged = {k: v for part in parts for k, v in part.items() if k not in UNRECORDED}
    return {k: v if isinstance(v, (int, float, bool, type(None))) else _plain(v) for k, v in merged.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value if isinstance(value, (int, float, bool, str, type(None))) else str(value)


def check_ranks(args: Any) -> None:
    """Raise ConfigError where a launched rank believes it is alone: several runs would write one folder."""
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != args.world_size:
        raise ConfigError(
            f"{launched} ranks were launched, but this one sees {args.world_size}",
            field="use_cpu",
            cure="set use_cpu: true for CPU ranks, or false on GPUs",
        )


def check_trackers(report_to: Sequence[str]) -> None:
    """Raise ConfigError where a run should report to a tracker that is not installed."""
    for name in ("wandb", "trackio"):
        if name in report_to and find_spec(name) is None:
            raise ConfigError(
                f"{name} is not installed", field="report_to", cure=f"pip install {name}, or leave it out"
            )


def check_grpo(args: Any, n_rewards: int) -> None:
    """Raise ConfigError on GRPO options that would not do what they say here."""
    if args.reward_weights is not None and len(args.reward_weights) != n_rewards:
        raise ConfigError(f"has {len(args.reward_weights)} weights for {n_rewards} rewards", field="reward_weights")
    if not args.max_completion_length:
        raise ConfigError("is not given", field="max_completion_length", cure="name the longest answer in tokens")
    if args.gradient_checkpointing:
        raise ConfigError(
            "shares each prompt among its completions through a cache, which checkpointing turns off",
            field="activation_checkpointing",
            cure="set it to false and lower per_device_train_batch_size",
        )


def check_saving(args: Any, clips: int) -> None:
    """Raise ConfigError where a GRPO run on so many clips would leave checkpoints in the middle of a rollout.

    Resumed from one of those, a run would sample again what it had half used, and end elsewhere.
    """
    schedule = RolloutSchedule.of(args, clips)
    if schedule.rollouts == 0:
        needed = args.generation_batch_size // args.num_generations
        raise ConfigError(
            f"{clips} training clips are fewer than the {needed} of one rollout",
            field="generation_batch_size",
            cure="lower per_device_train_batch_size or steps_per_generation, or train on more clips",
        )
    if args.enable_jit_checkpoint and schedule.between(1) is not None:
        what = "would save in the middle of a rollout, wherever a signal arrives"
        raise ConfigError(what, field="enable_jit_checkpoint", cure="leave it out; save_steps decides")
    if args.save_strategy != "steps":
        return
    every = math.ceil(schedule.steps * args.save_steps) if args.save_steps < 1 else int(args.save_steps)
    step = schedule.between(every)
    if step is not None:
        lasts = f"one serves {schedule.reuse} micro-steps, an optimizer step takes {schedule.accumulation}"
        raise ConfigError(
            f"is {args.save_steps}, which would save after step {step}, in the middle of a rollout ({lasts})",
            field="save_steps",
            cure=f"set it to {' or '.join(map(str, schedule.nearest(every)))}",
        )
