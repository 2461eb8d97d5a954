"""equivox preflight --config launch/configs/grpo.yaml --data DATA --adapter runs/my/sft --output_dir runs/my/grpo

Takes the options of `equivox grpo` but --config_file, in one process, and trains nothing. First it estimates the memory
of a step on this machine and says what to lower where it does not fit; then it loads the model, samples a few answers
with the engine that the run would use, and holds that engine to the trainer: prompts, audio, log-probabilities with
true and with swapped audio, and whether a changed adapter arrives (docs/preflight.md). Status 0 when training may
start, 2 with one line when not.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.cli import run
from reasoning.errors import ConfigError
from reasoning.training.memory_estimate import TRUST, ModelShape, Need, RunShape, cures, needs, peak, stored_parameters

if TYPE_CHECKING:
    from reasoning.models.prompter import Prompter

GIB = 2**30


@dataclass(frozen=True)
class Place:
    """A memory that a run's numbers lie in. free: bytes now. host: what lies there, as `peak` takes it."""

    name: str
    free: float
    host: bool | None = None


def main(argv: list[str] | None = None) -> int:
    from launch.grpo import read_options

    preflight(*read_options(argv, "equivox preflight", __doc__))
    return 0


def preflight(data: Any, model: Any, reward: Any, rollout: Any, args: Any) -> None:
    """Print the estimate and the gate's table. Raises what training would refuse, ConfigError where memory is short."""
    from launch.grpo import prepare
    from reasoning.inference.server_engine import LocalCheckpoint
    from reasoning.models.prompter import Prompter

    _, corpus, rows, _ = prepare(data, model, reward, args)
    base = Path(model.model_name_or_path)
    shape, prompter = ModelShape.read(base), Prompter(LocalCheckpoint.read(base), corpus.info.emotions)
    asked = run_shape(data, model, args, prompter, rows)
    found, places = needs(shape, asked), memories(args)
    print(estimate_table(found, places, a_second(shape, asked, prompter)), flush=True)
    short = {place: peak(found, host=place.host) for place in places if peak(found, host=place.host) > place.free}
    lowered = {place: cures(shape, asked, place.free, host=place.host) for place in short}
    for place, options in lowered.items():
        print(f"to need less {place.name}, any of:", *options, sep="\n  ", flush=True)
    print(flush=True)
    parity(data, model, rollout, args, corpus, rows)
    if short:
        place, needed = next(iter(short.items()))
        what = f"{needed / GIB:.1f} GiB of {place.name} are needed and {place.free / GIB:.1f} are free, by estimate"
        raise ConfigError(what, field="memory", cure=lowered[place][0])


def parity(data: Any, model: Any, rollout: Any, args: Any, corpus: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Run the gate on the engine that training would use. Raises RolloutParityError."""
    from launch.rollouts import open_rollouts
    from launch.training import load_for_training
    from reasoning.models.answer_head import add_answer_head
    from reasoning.models.prompter import Prompter
    from reasoning.rollouts.drawing import sampling_of
    from reasoning.rollouts.fitting import refuse_unfit
    from reasoning.rollouts.parity import check_parity, swaps
    from reasoning.rollouts.policy import Policy
    from reasoning.rollouts.transformers import TransformersRollouts
    from reasoning.rollouts.weights import to_send

    loaded = load_for_training(model, args)
    loaded.model.to(args.device)
    prompter = Prompter(loaded, corpus.info.emotions)
    add_answer_head(loaded.base, prompter.labels)
    policy = Policy(loaded, prompter, loaded.memory(data.memory_gib), data.level)
    rollouts = open_rollouts(loaded, rollout, args) or TransformersRollouts(loaded, prompter)
    try:
        tensors = to_send(rollouts, loaded)
        if args.use_vllm:
            print(f"a sync of {rollouts.name} moves {tensors.describe()}", flush=True)
        refuse_unfit(rows, prompter, data.level, args.max_completion_length, rollouts.max_tokens)
        checked = check_parity(
            policy,
            rollouts,
            policy.cases(rows, swaps(rows)),
            sampling_of(args),
            sync=lambda: rollouts.sync(tensors),
            trained=model.adapter is not None,
            seed=args.seed,
        )
    finally:
        rollouts.close()
    print(checked.table(), flush=True)
    checked.require()


def run_shape(data: Any, model: Any, args: Any, prompter: Prompter, rows: Sequence[Mapping[str, Any]]) -> RunShape:
    """The shapes that decide the memory of one process, read off options, adapter and clips."""
    import torch

    from reasoning.models.memory import Heard, most_frames

    frames = [most_frames(row["duration_s"], prompter.processor.feature_extractor) for row in rows]
    longest = max(range(len(rows)), key=frames.__getitem__)
    heard = Heard(torch.empty(0), frames[longest])
    shape = ModelShape.read(Path(model.model_name_or_path))
    adapter, rank = trained(model, shape, prompter.family.projector)
    asked = RunShape(
        weight_bytes=2 if model.dtype == "bfloat16" else 4,
        autocast=bool(args.bf16),
        eager=model.attn_implementation == "eager",
        adapter=adapter,
        rank=rank,
        micro=args.per_device_train_batch_size,
        group=args.num_generations,
        steps=args.steps_per_generation,
        prompt=len(prompter.prompt_ids(rows[longest]["transcript"], heard, data.level)),
        completion=args.max_completion_length,
        clip_tokens=sum(map(prompter.family.audio_tokens, frames)),
        memory_gib=data.memory_gib,
        generates=not args.use_vllm,
    )
    return replace(asked, vllm_gib=colocated_gib(shape, asked, args))


def trained(model: Any, shape: ModelShape, projector: str) -> tuple[int, int]:
    """(parameters that a run trains, rank of its LoRA); the projector, a module's name, only where it is trained."""
    import json

    if model.adapter is not None:
        weights = Path(model.adapter) / "adapter_model.safetensors"
        rank = json.loads((Path(model.adapter) / "adapter_config.json").read_text())["r"]
        frozen = 0 if model.train_projector else stored_parameters(weights, projector)
        return stored_parameters(weights) - frozen, rank
    files = Path(model.model_name_or_path).glob("*.safetensors") if model.train_projector else ()
    return shape.lora(model.lora_r) + sum(stored_parameters(file, projector) for file in files), model.lora_r


def colocated_gib(shape: ModelShape, asked: RunShape, args: Any) -> float:
    """What a vLLM in the trainer's process takes: a share of the GPU, or on a CPU its weights and its fixed cache."""
    import torch

    if not args.use_vllm or args.vllm_mode != "colocate":
        return 0.0
    if not args.use_cpu and torch.cuda.is_available():
        return args.vllm_gpu_memory_utilization * torch.cuda.mem_get_info()[1] / GIB
    return shape.parameters * asked.weight_bytes / GIB + float(os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1"))


def memories(args: Any) -> list[Place]:
    """Where the run's numbers lie, and what is free there."""
    import psutil
    import torch

    memory = float(psutil.virtual_memory().available)
    if args.use_cpu or not torch.cuda.is_available():
        return [Place("memory", memory)]
    gpu = float(torch.cuda.mem_get_info()[0])
    return [Place("GPU memory", gpu, host=False), Place("memory", memory, host=True)]


def a_second(shape: ModelShape, asked: RunShape, prompter: Prompter) -> float:
    """Bytes that one more second of audio in every prompt would need."""
    from reasoning.models.memory import most_frames

    one, two = (
        prompter.family.audio_tokens(most_frames(seconds, prompter.processor.feature_extractor)) for seconds in (1, 2)
    )
    return peak(needs(shape, replace(asked, prompt=asked.prompt + two - one))) - peak(needs(shape, asked))


def estimate_table(found: Sequence[Need], places: Sequence[Place], second: float) -> str:
    """Each need on a line, what a second of audio costs, the worst moment of each memory, and whether it fits."""
    width = max(len(need.name) for need in found)
    lines = ["memory of a step, one process, beside Python and its libraries", ""]
    lines += [f"  {need.name:{width}}  {need.bytes / GIB:7.2f} GiB  {need.when}" for need in found]
    lines += ["", f"  each second of audio more in the longest clips: {second / GIB:.2f} GiB"]
    for place in places:
        free, needed = place.free, peak(found, host=place.host)
        verdict = "fits" if needed * TRUST <= free else "tight" if needed <= free else "DOES NOT FIT"
        lines += ["", f"{place.name}: {needed / GIB:.1f} GiB at the worst moment, {free / GIB:.1f} GiB free: {verdict}"]
    lines += [f"(sampling and training never meet; measured peaks lie within a factor of {TRUST:g} of the estimate)"]
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
