"""A LoRA adapter that vLLM takes as it is: whether it can, how it is started for it, and how it is handed one.

vLLM loads adapters from folders; between its loading and its layers lie LoRAModel and LoRAModelManager, which take
tensors. So an adapter arrives as a sync's other tensors do, in memory or in files, and takes the place of the one
before under the same number: no request can meet two of them, and no folder of an old one is left behind.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast, get_args

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from reasoning.errors import ConfigError, ModelError
from reasoning.models.loading import best_device

LORA_A, LORA_B = ".lora_A.weight", ".lora_B.weight"
"""What follows a layer's name in the names of its two matrices."""

ADAPTER_NUMBER = 1
"""vLLM's number of the only adapter; the first that a server is started with gets it."""


def is_lora(name: str) -> bool:
    """Whether a tensor is one of an adapter's, by its name."""
    return name.endswith((LORA_A, LORA_B))


def takes_lora(checkpoint: Path, dtype: str, **options: Any) -> bool:
    """Whether this machine's vLLM takes adapters for a checkpoint's model. options: of vLLM's engine.

    Its class says so; on a GPU its kernels compute in 16 bits only.
    """
    if dtype == "float32" and best_device().type != "cpu":
        return False
    from vllm.engine.arg_utils import EngineArgs  # pyright: ignore[reportMissingImports]
    from vllm.model_executor.models import ModelRegistry, supports_lora  # pyright: ignore[reportMissingImports]

    config = EngineArgs(model=str(checkpoint), dtype=cast(Any, dtype), **options).create_model_config()
    model, _ = ModelRegistry.resolve_model_cls(config.architectures, config)
    return supports_lora(model)


def known_ranks() -> list[int]:
    """Those that vLLM can set memory aside for, in order."""
    from vllm.config.lora import MaxLoRARanks  # pyright: ignore[reportMissingImports]

    return sorted(get_args(MaxLoRARanks))


def lora_options(rank: int) -> dict[str, Any]:
    """Options of vLLM's engine with which it takes one adapter of up to this rank; none for 0.

    vLLM knows certain ranks only; the next higher one is taken. Raises ConfigError above the highest.
    """
    if rank == 0:
        return {}
    known = known_ranks()
    if rank not in range(1, known[-1] + 1):
        raise ConfigError(f"is {rank}, vLLM takes 1 to {known[-1]}", field="--max-lora-rank", cure="0: merged weights")
    return {"enable_lora": True, "max_lora_rank": next(k for k in known if k >= rank), "max_loras": 1}


def lora_request(name: str, path: str) -> Any:
    """What vLLM is handed with a prompt that the adapter shall answer. path: read only where no adapter is held."""
    from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

    return LoRARequest(name, ADAPTER_NUMBER, path)


def adapter_name(served: str) -> str:
    """What a server that is called `served` calls the adapter of the training that it serves."""
    return f"{served}-adapter"


def write_blank(folder: Path, checkpoint: Path, layers: str) -> Path:
    """`folder`, made an adapter that changes nothing, with which a server of the checkpoint can be started.

    layers: pattern of the language model's linear layers. One of them is named, as vLLM takes no adapter without any.
    """
    layer, (rows, columns) = _first_layer(checkpoint, layers)
    folder.mkdir(parents=True, exist_ok=True)
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": [layer.rpartition(".")[2]]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    matrices = {LORA_A: torch.zeros(1, columns), LORA_B: torch.zeros(rows, 1)}
    save_file({_peft_name(layer + part): t for part, t in matrices.items()}, folder / "adapter_model.safetensors")
    return folder


def _first_layer(checkpoint: Path, layers: str) -> tuple[str, list[int]]:
    for path in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                if re.fullmatch(layers, name.removesuffix(".weight")):
                    return name.removesuffix(".weight"), file.get_slice(name).get_shape()
    raise ModelError("has no linear layer that an adapter could be put on", row=str(checkpoint), field="model")


def put_adapter(worker: Any, tensors: dict[str, Tensor]) -> None:
    """Have a vLLM worker hold these matrices, named by `LORA_A` and `LORA_B`, in place of the adapter before.

    Raises ModelError on a layer to which vLLM would not add them, which it passes over in silence, and on a rank above
    its limit.
    """
    from vllm.lora.lora_model import LoRAModel  # pyright: ignore[reportMissingImports]
    from vllm.lora.peft_helper import PEFTHelper  # pyright: ignore[reportMissingImports]

    model = worker.model_runner.get_model()
    manager = getattr(model, "lora_manager", None)
    if manager is None:
        raise ModelError("takes merged weights only", field="adapter", cure="start it with --max-lora-rank")
    rank = max(tensor.shape[0] for name, tensor in tensors.items() if name.endswith(LORA_A))
    if rank > manager.lora_config.max_lora_rank:
        what = f"has rank {rank}, this vLLM takes up to {manager.lora_config.max_lora_rank}"
        raise ModelError(what, field="adapter", cure=f"start it with --max-lora-rank {rank}")
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    lora = LoRAModel.from_lora_tensors(
        ADAPTER_NUMBER,
        {_peft_name(name): tensor for name, tensor in tensors.items()},
        PEFTHelper(r=rank, lora_alpha=rank, target_modules=[]),  # the scaling is in LORA_B
        device="cpu",
        dtype=manager.lora_config.lora_dtype,
        weights_mapper=mapper and mapper.get_rename_mapper(),
    )
    places = {*manager.modules, *(part for parts in manager.packed_modules.values() for part in parts)}
    if unknown := sorted(set(lora.loras) - places):
        what = f"adapts {len(unknown)} layers, {unknown[0]} first, to which this vLLM adds no LoRA"
        raise ModelError(what, field="adapter", cure="have it sent merged weights: --max-lora-rank 0")
    manager.remove_adapter(ADAPTER_NUMBER)
    manager.add_adapter(lora)
    manager.activate_adapter(ADAPTER_NUMBER)


def fits(name: str, shape: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    """Whether a tensor of this shape can take the place of a weight, or as a matrix be added to it.

    vLLM would pad a matrix that is too small.
    """
    if not is_lora(name):
        return shape == weight
    place = 1 if name.endswith(LORA_A) else 0
    return len(shape) == len(weight) == 2 and shape[place] == weight[place]


def weight_of(name: str) -> str:
    """The weight that a tensor takes the place of, or that a matrix is added to."""
    layer = name.removesuffix(LORA_A).removesuffix(LORA_B)
    return f"{layer}.weight" if is_lora(name) else name


def _peft_name(name: str) -> str:
    return f"base_model.model.{name}"
