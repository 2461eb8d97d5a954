"""What a vLLM worker does with the weights that training touched, in the trainer's process or in a server's."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor

from reasoning.errors import ModelError
from reasoning.rollouts.adapters import is_lora, put_adapter


def receive(worker: Any, tensors: Mapping[str, Tensor]) -> None:
    """Replace what a vLLM worker's model got before by `tensors`: weights, matrices of an adapter (`is_lora`), or both.

    Where no matrix comes, no adapter is left. Raises ModelError on a name that the checkpoint or vLLM's model does not
    have.
    """
    adapter = [name for name in tensors if is_lora(name)]
    weights = [name for name in tensors if not is_lora(name)]
    if weights or not adapter:
        _reload(worker.model_runner, tensors, weights)  # vLLM drops its adapters with that
    if adapter:
        put_adapter(worker, {name: tensors[name] for name in adapter})


def _reload(runner: Any, tensors: Mapping[str, Tensor], names: Collection[str]) -> None:
    """Replace the weights of these names, which are those of the checkpoint that vLLM was started from.

    vLLM fuses q, k and v, or gate and up, into one layer, and rebuilds a layer from what it is handed: a part that is
    not handed over would be left uninitialised. So parts that training left alone are read from the checkpoint, which
    still has them as they are.
    """
    stored = _stored(Path(runner.model_config.model))
    unknown = sorted(set(names) - stored.keys())
    if unknown:
        raise ModelError(f"{len(unknown)} weights, {unknown[0]} first, are not in {runner.model_config.model}")
    rest = untouched_parts(names, stored, _fused(runner.model))
    with _quiet():
        runner.reload_weights(weights_iterator=_all(tensors, names, {name: stored[name] for name in rest}))


def untouched_parts(touched: Collection[str], stored: Collection[str], fused: Collection[frozenset[str]]) -> set[str]:
    """Names in `stored` that vLLM keeps in one layer with one of `touched`. fused: modules that share a layer."""
    modules = {name.rpartition(".")[0] for name in touched}
    layers = set()
    for module in modules:
        parent, _, last = module.rpartition(".")
        for part in {last}.union(*(group for group in fused if last in group)):
            layers.add(f"{parent}.{part}" if parent else part)
    return {name for name in stored if name.rpartition(".")[0] in layers} - set(touched)


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, types and bytes in the order of names, as hexadecimal digits."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        add_to_checksum(digest, name, tensors[name])
    return digest.hexdigest()


def add_to_checksum(digest: Any, name: str, tensor: Tensor) -> None:
    """Bring the next tensor, in the order of names, into the sha256 that `checksum` returns."""
    tensor = tensor.detach().cpu().contiguous()
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(cast(Any, tensor.flatten().view(torch.uint8).numpy()))


@lru_cache(maxsize=1)
def _stored(folder: Path) -> dict[str, Path]:
    """Which file holds each tensor of a checkpoint folder."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    return found


def _fused(model: Any) -> set[frozenset[str]]:
    mappings = [getattr(module, "packed_modules_mapping", None) or {} for module in model.modules()]
    return {frozenset(parts) for mapping in mappings for parts in mapping.values()}


def _all(
    tensors: Mapping[str, Tensor], names: Collection[str], rest: Mapping[str, Path]
) -> Iterator[tuple[str, Tensor]]:
    # In the order of names a layer's parts come together, so vLLM holds one layer twice at a time and not all.
    for name in sorted({*names, *rest}):
        if name in rest:
            with safe_open(rest[name], "pt") as file:
                yield name, file.get_tensor(name)
        else:
            yield name, tensors[name]  # once each: asking a Mapping whether it has a tensor would compute it


@contextmanager
def _quiet() -> Iterator[None]:
    """Without a warning for each layer that keeps its weights, which here is meant."""
    logger = logging.getLogger("vllm")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
