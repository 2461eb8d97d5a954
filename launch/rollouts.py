"""What the GRPO commands share about vLLM: its options, checked, and the rollouts they ask for."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasoning.errors import ConfigError

if TYPE_CHECKING:
    from reasoning.models.loading import Loaded
    from reasoning.rollouts.rollouts import Rollouts


COLOCATED = {
    "vllm_gpu_memory_utilization": "--gpu-memory-utilization",
    "vllm_enable_sleep_mode": "--enable-sleep-mode",
    "vllm_tensor_parallel_size": "--tensor-parallel-size",
    "vllm_max_model_length": "--max-model-len",
    "vllm_model_impl": "--model-impl",
}
"""Options of a vLLM that the training starts -> what `equivox serve` calls them."""

SERVED = ("vllm_server_base_url", "vllm_server_host", "vllm_server_port", "rollouts_folder", "rollouts_transport")
"""Options that say where a server is and how it gets its weights."""

UNREAD = {
    "generation_kwargs": "is not passed to vLLM",
    "vllm_structured_outputs_regex": "is not passed to vLLM",
    "vllm_server_timeout": "is not read: a server is waited for as long as it may take to be restarted",
    "vllm_group_port": "is not read: no transport of weights listens on a port of its own",
}


@dataclass
class RolloutArguments:
    """Where a server takes its weights from and how, and how often its rollouts are held to the trainer."""

    rollouts_folder: str | None = field(
        default=None,
        metadata={"help": "With vllm_mode server: the FOLDER of `equivox serve --rollouts FOLDER`."},
    )
    rollouts_transport: str = field(
        default="file",
        metadata={
            "help": "With vllm_mode server: how weights reach it. file, or broadcast: NCCL between GPUs, else gloo."
        },
    )
    parity_every: int = field(
        default=50,
        metadata={"help": "With use_vllm: steps between parity checks; 0 checks before the first step only."},
    )

    def __post_init__(self) -> None:
        if self.parity_every < 0:
            raise ConfigError(f"is {self.parity_every}, expected 0 or more", field="parity_every")
        if self.rollouts_transport not in ("file", "broadcast"):
            what = f"is {self.rollouts_transport!r}, expected file or broadcast"
            raise ConfigError(what, field="rollouts_transport")


def check_vllm(args: Any, rollout: RolloutArguments) -> None:
    """Raise ConfigError on options that vLLM's rollouts would not follow."""
    if not args.use_vllm:
        return
    if args.vllm_mode == "server" and rollout.rollouts_folder is None:
        cure = "name the folder of `equivox serve --rollouts FOLDER`"
        raise ConfigError("is missing: the server takes its weights from there", field="rollouts_folder", cure=cure)
    if args.vllm_mode == "colocate" and args.world_size % args.vllm_tensor_parallel_size:
        what = f"is {args.vllm_tensor_parallel_size}, which does not divide the {args.world_size} ranks"
        raise ConfigError(what, field="vllm_tensor_parallel_size")
    _refuse_unread(args, rollout)
    # TRL checks this where it starts a vLLM of its own.
    mode, wanted = args.vllm_importance_sampling_mode, ("token_truncate", "token_mask")
    if args.loss_type == "vespo" and args.vllm_importance_sampling_correction and mode not in wanted:
        what = f"is {mode}, but loss_type vespo needs {' or '.join(wanted)}"
        raise ConfigError(what, field="vllm_importance_sampling_mode")
    sharded = {"fsdp": bool(args.fsdp), "deepspeed": _stage_three(args)}
    for name, is_so in sharded.items():
        if is_so:
            what = "cuts the weights up over the ranks, which the merge for vLLM does not follow"
            raise ConfigError(what, field=name, cure="use ddp or ZeRO-2, or leave out use_vllm")


def _refuse_unread(args: Any, rollout: RolloutArguments) -> None:
    """Raise ConfigError naming the first option that was changed and that nothing in this vllm_mode reads."""
    from trl import GRPOConfig

    given = vars(args) | vars(rollout)
    defaults = {f.name: f.default for kind in (GRPOConfig, RolloutArguments) for f in fields(kind)}
    for name, (what, cure) in _unread(args).items():
        if given[name] != defaults[name]:
            raise ConfigError(what, field=name, cure=cure)


def _unread(args: Any) -> dict[str, tuple[str, str]]:
    """Option -> why nothing reads it and what to do instead."""
    unread = {name: (what, "leave it out") for name, what in UNREAD.items()}
    if args.vllm_mode == "colocate":
        return unread | dict.fromkeys(SERVED, ("is of a server, vllm_mode is colocate", "add vllm_mode: server"))
    what = "is of the vLLM that vllm_mode colocate starts, which a server does not read"
    unread |= {name: (what, f"start `equivox serve` with {option} instead") for name, option in COLOCATED.items()}
    if args.vllm_server_base_url is not None:
        beside = ("is not read beside vllm_server_base_url", "leave one of them out")
        unread |= dict.fromkeys(("vllm_server_host", "vllm_server_port"), beside)
    return unread


def _stage_three(args: Any) -> bool:
    plugin = getattr(args, "deepspeed_plugin", None)
    return plugin is not None and plugin.zero_stage == 3


def number_type(args: Any, weights: str) -> str:
    """What a colocated vLLM computes in: bfloat16 with bf16 on a GPU, else the type of the weights.

    vLLM's CPU build is slower in bfloat16 than in float32, where autocast makes training faster.
    """
    from reasoning.models.loading import best_device

    return "bfloat16" if args.bf16 and best_device().type != "cpu" else weights


def open_rollouts(loaded: Loaded, rollout: RolloutArguments, args: Any) -> Rollouts | None:
    """The rollouts that a GRPOConfig asks for, started; None where the trainer's model samples itself."""
    if not args.use_vllm:
        return None
    if args.vllm_mode == "server":
        from launch.engines import served_name
        from reasoning.inference.server_engine import LocalCheckpoint
        from reasoning.rollouts.broadcast import BroadcastTransport
        from reasoning.rollouts.server import ServerRollouts

        url = args.vllm_server_base_url or f"http://{args.vllm_server_host}:{args.vllm_server_port}"
        model = served_name(loaded.path, None)
        checkpoint, folder = LocalCheckpoint.read(loaded.path), Path(str(rollout.rollouts_folder))
        return ServerRollouts(
            f"{url.removesuffix('/v1')}/v1",
            model,
            checkpoint,
            folder,
            transport=partial(BroadcastTransport, folder) if rollout.rollouts_transport == "broadcast" else None,
            sends=args.process_index == 0,
        )

    from reasoning.rollouts.colocate import Colocate

    return Colocate(
        loaded,
        dtype=number_type(args, str(loaded.base.dtype).removeprefix("torch.")),
        max_num_seqs=args.per_device_train_batch_size * args.steps_per_generation,
        sleep=args.vllm_enable_sleep_mode,
        tensor_parallel_size=args.vllm_tensor_parallel_size,
        gpu_memory_utilization=args.vllm_gpu_memory_utilization,
        max_model_len=args.vllm_max_model_length,
        model_impl=args.vllm_model_impl,
        trust_remote_code=args.trust_remote_code,
    )
