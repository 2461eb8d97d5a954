"""The weights that training touched, merged, under the names of the hub: all that an engine needs to keep up."""

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


class Touched(Mapping[str, Tensor]):
    """Name -> tensor of each weight that an adapter changes, in the base's number type, as `merge_adapter` saves it.

    A tensor is computed when it is asked for, by peft's own merge on a copy of the one layer: nothing is added to the
    live model and taken off again, which would leave rounding behind, and memory holds one layer twice, not all.
    without: name of a module that is left out, such as a projector whose output an engine is handed. Raises ModelError
    where something else than LoRA layers and modules trained whole is trained: it would not reach the engine.
    """

    def __init__(self, model: PeftModel, *, without: str | None = None) -> None:
        base = cast(PreTrainedModel, model.get_base_model())
        self._compute: dict[str, Callable[[], Tensor]] = {}
        covered = []
        for name, module in base.named_modules():
            if isinstance(module, LoraLayer):
                found: dict[str, Callable[[], Tensor]] = {f"{name}.weight": partial(_merged, module)}
            elif isinstance(module, ModulesToSaveWrapper):
                found = {f"{name}.{part}": partial(_whole, module, part) for part in _parts(module)}
            else:
                continue
            covered.append(f"{name}.")
            if without is None or without not in name.split("."):
                self._compute |= {hub_name(base, part): compute for part, compute in found.items()}
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


def _trained(wrapper: Any) -> nn.Module:
    return wrapper.modules_to_save[wrapper.active_adapters[0]]


def _parts(wrapper: Any) -> list[str]:
    return [name for name, _ in _trained(wrapper).named_parameters()]


def _whole(wrapper: Any, part: str) -> Tensor:
    return _trained(wrapper).get_parameter(part).detach()
