"""The engine that a command's options name: transformers in this process, vLLM beside it, or a server."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from reasoning.errors import ConfigError

if TYPE_CHECKING:
    from reasoning.emotions import EmotionSet
    from reasoning.inference.engine import Engine
    from reasoning.models.memory import AudioMemory

BATCH_SIZE = {"transformers": 32, "vllm": 64, "server": 16}
URL = "http://127.0.0.1:8000/v1"


@dataclass(frozen=True)
class Opened:
    """An engine with what its answers depend on.

    model: where its weights come from. fingerprint: of the base model. described: engine and number type, or the name
    it is served under. memory: makes the encode-once memory over the model's tower; None without a local model.
    """

    engine: Engine
    model: str
    fingerprint: str
    described: str
    memory: Callable[[], AudioMemory] | None


def add_options(p: argparse.ArgumentParser) -> None:
    """Add the options that `open_engine` reads."""
    p.add_argument("--model", type=Path, help="checkpoint folder; only --engine server does without")
    p.add_argument("--adapter", type=Path, help="adapter folder of `equivox sft` or `equivox grpo` (default: none)")
    p.add_argument(
        "--engine", choices=tuple(BATCH_SIZE), default="transformers", help="who runs the model (default: transformers)"
    )
    p.add_argument("--url", default=URL, help=f"of --engine server, for example `equivox serve`'s (default: {URL})")
    p.add_argument("--served-model", help="what the server calls the model (default: as `equivox serve` does)")
    p.add_argument("--batch-size", type=int, help=f"clips at a time, default by engine: {BATCH_SIZE}")
    p.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: float32")


def open_engine(args: argparse.Namespace, emotions: EmotionSet) -> Opened:
    """The engine that `args` names. Raises ConfigError, ModelError or EvaluationError when it cannot be had."""
    if args.batch_size is not None and args.batch_size < 1:
        raise ConfigError(f"is {args.batch_size}, expected at least 1", field="--batch-size")
    if args.model is None and (args.engine != "server" or args.adapter is not None):
        raise ConfigError("is not given", field="--model", cure="name the checkpoint's folder")
    opener = {"transformers": _transformers, "vllm": _vllm, "server": _server}[args.engine]
    return opener(args, emotions, args.batch_size or BATCH_SIZE[args.engine])


def merged(model: Path, adapter: Path | None) -> Path:
    """A folder that vLLM can load: `model`, or beside the adapter in `merged/`, the two as one."""
    if adapter is None:
        return model
    from reasoning.models.merging import merge_adapter

    return merge_adapter(model, adapter, adapter / "merged")


def served_name(model: Path, adapter: Path | None) -> str:
    """What `equivox serve` calls a model: its weights' fingerprints, so that nobody can ask the wrong one."""
    from reasoning.evaluation.record import adapter_fingerprint
    from reasoning.models.loading import check_adapter, fingerprint

    mark = fingerprint(model)
    if adapter is None:
        return f"equivox-{mark[:12]}"
    check_adapter(adapter, model, mark)
    return f"equivox-{mark[:12]}-{adapter_fingerprint(adapter)[:12]}"


def _transformers(args: argparse.Namespace, emotions: EmotionSet, batch_size: int) -> Opened:
    import torch
    from peft import PeftModel

    from reasoning.inference.transformers_engine import TransformersEngine
    from reasoning.models.loading import best_device, load_model

    loaded = load_model(args.model, args.adapter, dtype=getattr(torch, args.dtype), device=best_device())
    if isinstance(loaded.model, PeftModel) and args.dtype == "float32":
        # Saves two small products a layer and token. bfloat16 would round the weights.
        loaded.model.merge_adapter()
    engine = TransformersEngine(loaded, emotions, batch_size=batch_size)
    return Opened(
        engine, str(args.model), loaded.fingerprint, f"transformers {args.dtype}", memory=lambda: engine.memory
    )


def _vllm(args: argparse.Namespace, emotions: EmotionSet, batch_size: int) -> Opened:
    from reasoning.inference.local_vllm import require_vllm
    from reasoning.inference.vllm_engine import VllmEngine
    from reasoning.models.loading import fingerprint

    require_vllm()
    checkpoint = merged(args.model, args.adapter)
    engine = VllmEngine(checkpoint, emotions, dtype=args.dtype, batch_size=batch_size)
    return Opened(engine, str(args.model), fingerprint(args.model), f"vllm {args.dtype}", memory=lambda: engine.memory)


def _server(args: argparse.Namespace, emotions: EmotionSet, batch_size: int) -> Opened:
    from reasoning.inference.endpoint import Endpoint
    from reasoning.inference.server_engine import LocalCheckpoint, ServerEngine
    from reasoning.models.loading import fingerprint, load_model

    endpoint = Endpoint(args.url, api_key=os.environ.get("OPENAI_API_KEY"))
    if args.model is None:
        engine = ServerEngine(endpoint, emotions, model=args.served_model, concurrency=batch_size)
        return Opened(engine, f"{engine.model} at {endpoint.url}", engine.model, f"server {engine.model}", memory=None)
    checkpoint = LocalCheckpoint.read(args.model)
    name = args.served_model or served_name(args.model, args.adapter)
    engine = ServerEngine(endpoint, emotions, model=name, checkpoint=checkpoint, concurrency=batch_size)
    return Opened(
        engine,
        str(args.model),
        fingerprint(args.model),
        f"server {name}",
        memory=cache(lambda: load_model(args.model).memory()),
    )
