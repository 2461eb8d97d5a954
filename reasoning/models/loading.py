"""Load a checkpoint with its processor and, if asked, an adapter that belongs to it."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoProcessor, PreTrainedModel
from transformers.utils import logging

from reasoning.errors import ModelError
from reasoning.files import write_atomic
from reasoning.models.families import Family, family_of
from reasoning.models.memory import AudioMemory, accept_encoded

BASE_RECORD = "equivox_base.json"
"""Written beside an adapter: which base it was trained on."""

_SAMPLE_BYTES = 1 << 16
_SHOWN_FROM_BYTES = 2 << 30
"""Loading a smaller checkpoint takes seconds: transformers' progress bar would only stand between a command's lines."""

# peft asks every model that it wraps, and TRL every model that it unwraps, by the name that transformers 5 gave up.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


@dataclass(frozen=True)
class Loaded:
    """A model ready to be asked or trained. model may be peft-wrapped; base is the model inside."""

    model: PreTrainedModel | PeftModel
    processor: Any
    family: Family
    path: Path
    fingerprint: str

    @property
    def base(self) -> PreTrainedModel:
        """The full model without the peft wrapper."""
        return cast(PreTrainedModel, self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model)

    @property
    def projector(self) -> nn.Module:
        """The module between the audio tower and the language model."""
        return self.family.projector_of(self.base)

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    def memory(self, max_gib: float = 8.0) -> AudioMemory:
        """A fresh encode-once memory over this model's frozen tower."""
        tower = self.family.tower_of(self.base)
        return AudioMemory(tower, self.processor.feature_extractor, self.family, max_gib=max_gib)

    def modality_token_ids(self) -> list[int]:
        """Token ids that stand for audio and may never be sampled."""
        return self.tokenizer.convert_tokens_to_ids(list(self.family.modality_tokens))


def best_device() -> torch.device:
    """The accelerator that torch sees, or the CPU."""
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def fingerprint(path: Path) -> str:
    """A hash that tells checkpoints apart: every tensor's name, shape and type, and samples of the bytes.

    Reads 64 KiB from 16 places of each safetensors file, so it takes milliseconds for any size.
    """
    digest = hashlib.sha256()
    for file in sorted(path.glob("*.safetensors")):
        size = file.stat().st_size
        with file.open("rb") as stream:
            header = int.from_bytes(stream.read(8), "little")
            digest.update(stream.read(min(header, size)))
            for step in range(16):
                stream.seek(size * step // 16)
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def load_model(
    path: Path | str,
    adapter: Path | str | None = None,
    *,
    trainable: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
) -> Loaded:
    """The checkpoint folder at `path`, frozen and in eval mode, with `adapter` on it if given.

    trainable: leave the adapter's weights trainable. device: where it is put; trainers move it themselves. Raises
    ModelError when the folder is no supported checkpoint, has no safetensors, or the adapter belongs to another base.
    """
    path = Path(path)
    if not (path / "config.json").is_file() or not any(path.glob("*.safetensors")):
        raise ModelError(
            f"{path} is not a checkpoint folder (config.json and *.safetensors)",
            field="model",
            cure="run `equivox seed --out models/seed`, or give the folder of a checkpoint",
        )
    family = family_of(AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code))
    mark = fingerprint(path)
    if adapter is not None:
        check_adapter(Path(adapter), path, mark)
    with _quiet_if_small(path):
        model = family.auto.from_pretrained(
            path,
            dtype=dtype,
            attn_implementation=attn_implementation,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
        )
    processor = AutoProcessor.from_pretrained(path, trust_remote_code=trust_remote_code)
    model.requires_grad_(False)
    accept_encoded(family.tower_of(model))
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter), is_trainable=trainable)
    return Loaded(model.eval().to(device), processor, family, path, mark)


@contextmanager
def _quiet_if_small(path: Path) -> Iterator[None]:
    small = sum(file.stat().st_size for file in path.glob("*.safetensors")) < _SHOWN_FROM_BYTES
    if not small or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def check_adapter(adapter: Path, base: Path, base_fingerprint: str) -> None:
    """Raise ModelError unless `adapter` is an adapter folder for the base with this fingerprint."""
    if not (adapter / "adapter_config.json").is_file() or not (adapter / "adapter_model.safetensors").is_file():
        raise ModelError(
            f"{adapter} is not an adapter folder (adapter_config.json and adapter_model.safetensors)",
            field="adapter",
            cure="give the output folder of `equivox sft` or `equivox grpo`",
        )
    record = adapter / BASE_RECORD
    if record.is_file():
        trained_on = json.loads(record.read_text())
        if trained_on["fingerprint"] != base_fingerprint:
            raise ModelError(
                f"{adapter} was trained on {trained_on['path']}, whose weights differ from {base}",
                field="adapter",
                cure=f"give --model {trained_on['path']}, or train a new adapter on {base}",
            )


def add_adapter(
    loaded: Loaded, *, r: int, alpha: int, dropout: float, train_projector: bool, target_modules: str | None = None
) -> Loaded:
    """`loaded` with a fresh, trainable LoRA adapter on its language model.

    train_projector: also train the projector, saved whole with the adapter. Raises ModelError when the targets reach
    into the frozen tower or match nothing.
    """
    targets = target_modules or loaded.family.lora_targets
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets,
        modules_to_save=[loaded.family.projector] if train_projector else None,
        task_type="CAUSAL_LM",
    )
    try:
        model = get_peft_model(loaded.base, config)
    except ValueError as error:
        raise ModelError(str(error).split("\n")[0], field="lora_target_modules") from None
    loaded.family.check_targets([name for name, p in model.named_parameters() if p.requires_grad])
    return Loaded(model, loaded.processor, loaded.family, loaded.path, loaded.fingerprint)


def record_base(adapter: Path, loaded: Loaded) -> None:
    """Write beside a saved adapter which base it belongs to, for `check_adapter`."""
    data = {"path": str(loaded.path), "fingerprint": loaded.fingerprint, "model_type": loaded.family.model_type}
    write_atomic(adapter / BASE_RECORD, json.dumps(data, indent=1) + "\n")
