"""What training touched, under the names of the hub: all that an engine needs to keep up.

An engine whose vLLM takes LoRA for the model gets the language model's adapter as it is, every other weight that
training touched is sent merged: `to_send` decides.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from reasoning.errors import ModelError
from reasoning.models.loading import Loaded
from reasoning.rollouts.adapters import LORA_A, LORA_B
from reasoning.rollouts.rollouts import Rollouts


def to_send(rollouts: Rollouts, loaded: Loaded) -> Touched:
    """What a sync of `rollouts` moves, without the projector where the engine is handed what that returns.

    The adapter as it is where the engine's vLLM takes one (`Rollouts.lora_rank`), else all of it merged. Raises
    ModelError where the engine takes adapters of a lower rank only.
    """
    without = None if rollouts.hears else loaded.family.projector
    touched = Touched(cast(PeftModel, loaded.model), without=without, lora=rollouts.lora_rank > 0)
    if touched.rank > rollouts.lora_rank:
        what = f"has rank {touched.rank}, the vLLM of its rollouts takes up to {rollouts.lora_rank}"
        cure = f"give `equivox serve` --max-lora-rank {touched.rank}, or 0 for merged weights"
        raise ModelError(what, field="adapter", cure=cure)
    return touched


class Touched(Mapping[str, Tensor]):
    """Name -> tensor of each weight that an adapter changes, in the base's number type, as `merge_adapter` saves it.

    A tensor is computed when it is asked for, by peft's own merge on a copy of the one layer: nothing is added to the
    live model and taken off again, which would leave rounding behind, and memory holds one layer twice, not all.
    without: name of a module that is left out, such as a projector whose output an engine is handed.

    lora: in place of a merged weight, a layer of the language model is sent as its two matrices: `LORA_A` (rank, in)
    and `LORA_B` (out, rank), times the layer's scaling, after the layer's name. What is more than LoRA (DoRA, a bias)
    stays merged. rank: the highest of those layers, 0 without any.

    Raises ModelError where something else than LoRA layers and modules trained whole is trained: it would not reach
    the engine.
    """

    def __init__(self, model: PeftModel, *, without: str | None = None, lora: bool = False) -> None:
        base = cast(PreTrainedModel, model.get_base_model())
        language = set(base.get_decoder().modules()) if lora else set()
        self._compute: dict[str, Callable[[], Tensor]] = {}
        self.rank = 0
        covered = []
        for name, module in base.named_modules():
            if not isinstance(module, LoraLayer | ModulesToSaveWrapper):
                continue
            covered.append(f"{name}.")
            if without is not None and without in name.split("."):
                continue
            if isinstance(module, ModulesToSaveWrapper):
                for part in _parts(module):
                    self._compute[hub_name(base, f"{name}.{part}")] = partial(_whole, module, part)
                continue
            weight = hub_name(base, f"{name}.weight")
            if module in language and _is_plain(module):
                layer = weight.removesuffix(".weight")
                self._compute |= {layer + LORA_A: partial(_lora_a, module), layer + LORA_B: partial(_lora_b, module)}
                self.rank = max(self.rank, module.r[module.active_adapters[0]])
            else:
                self._compute[weight] = partial(_merged, module)
        lost = [n for n, p in base.named_parameters() if p.requires_grad and not n.startswith(tuple(covered))]
        if lost:
            what = f"{len(lost)} trained weights, {lost[0]} first, are in no LoRA layer and no module trained whole"
            raise ModelError(what, field="use_vllm", cure="train without use_vllm, or do not train them")

    def __getitem__(self, name: str) -> Tensor:
        with torch.no_grad():
            return self._compute[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._compute)

    def __len__(self) -> int:
        return len(self._compute)

    def describe(self) -> str:
        """One line for the log: how many layers go how."""
        as_lora = sum(name.endswith(LORA_A) for name in self)
        merged = len(self) - 2 * as_lora
        if not as_lora:
            return f"{merged} weights, merged"
        rest = f", and {merged} weights, merged" if merged else ", and no weight of the base"
        return f"the adapter of {as_lora} layers as it is, rank {self.rank}{rest}"


def hub_name(model: PreTrainedModel, name: str) -> str:
    """What the checkpoint on disk calls a weight of the loaded model. Raises ModelError where it is stored in parts."""
    names = list(revert_weight_conversion(model, {name: torch.empty(0, device="meta")}))
    if len(names) != 1:
        raise ModelError(f"is stored as {', '.join(names)}, so it cannot be replaced alone", row=name)
    return names[0]


def _merged(layer: Any) -> Tensor:
    alone = copy.deepcopy(layer)
    alone.merge(safe_merge=True)
    return alone.get_base_layer().weight.detach()


def _is_plain(layer: Any) -> bool:
    """Whether all that is added to a linear layer is the product of two matrices."""
    adapters = layer.active_adapters
    alone = len(adapters) == 1 and adapters[0] not in layer.lora_variant and not layer.lora_bias[adapters[0]]
    return alone and isinstance(layer.get_base_layer(), nn.Linear)


def _lora_a(layer: Any) -> Tensor:
    return layer.lora_A[layer.active_adapters[0]].weight.detach().clone()  # the live one goes on changing


def _lora_b(layer: Any) -> Tensor:
    adapter = layer.active_adapters[0]
    return layer.lora_B[adapter].weight.detach() * layer.scaling[adapter]


def _trained(wrapper: Any) -> nn.Module:
    return wrapper.modules_to_save[wrapper.active_adapters[0]]


def _parts(wrapper: Any) -> list[str]:
    return [name for name, _ in _trained(wrapper).named_parameters()]


def _whole(wrapper: Any, part: str) -> Tensor:
    return _trained(wrapper).get_parameter(part).detach()
