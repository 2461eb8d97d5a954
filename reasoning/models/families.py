"""What Equivox must know about a family of audio-language models: one small spec each, and nothing elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForMultimodalLM, AutoModelForSeq2SeqLM, PretrainedConfig, PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask

from reasoning.errors import ModelError

ENCODE_MARGIN_FRAMES = 2
"""Mel frames kept after the last valid one. Cut closer, the convolutions see the edge and every output frame is wrong;
with two, the result equals the padded one within float32 rounding (tests/reasoning/models/test_memory.py)."""


@dataclass(frozen=True)
class Family:
    """How one family hears and where it may be adapted.

    model_type: `config.model_type` of its checkpoints. auto: which of transformers' auto classes knows it with its
    language-model head. lora_targets: pattern of the language model's linear layers, as peft's `target_modules` takes
    it. projector: name of the module between tower and language model. tower: path of the audio tower under the full
    model. modality_tokens: tokens that stand for audio and may never be sampled. frames_mask: the model's input that
    marks the valid mel frames. encode: (tower, mel (B, bins, frames), valid frames (B,)) -> one (tokens, d) tensor a
    clip, what the tower returns before the projector. audio_tokens: valid mel frames -> audio tokens in the prompt.
    """

    model_type: str
    auto: type[Any]
    lora_targets: str
    projector: str
    tower: str
    audio_token: str
    modality_tokens: tuple[str, ...]
    frames_mask: str
    encode: Callable[[nn.Module, Tensor, Sequence[int]], list[Tensor]]
    audio_tokens: Callable[[int], int]

    def tower_of(self, model: PreTrainedModel) -> nn.Module:
        """The audio tower inside the full (not peft-wrapped) model."""
        return model.get_submodule(self.tower)

    def projector_of(self, model: PreTrainedModel) -> nn.Module:
        """What turns features of the tower into embeddings; peft's wrapper where it is trained whole."""
        return next(module for name, module in model.named_modules() if name.split(".")[-1] == self.projector)

    def check_targets(self, adapted: Sequence[str]) -> None:
        """Raise ModelError if a module name in `adapted` lies in the audio tower, which is frozen."""
        inside = [name for name in adapted if self.tower.rsplit(".", 1)[-1] in name.split(".")]
        if inside:
            raise ModelError(
                f"would adapt {len(inside)} modules of the frozen audio tower, {inside[0]} first",
                field="lora_target_modules",
                cure=f"use the family's pattern {self.lora_targets!r}",
            )


_QWEN2_LINEARS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


def _pooled_whisper_tokens(frames: int) -> int:
    return (((frames - 1) // 2 + 1) - 2) // 2 + 1


def _encode_pooled_whisper(tower: Any, mel: Tensor, frames: Sequence[int]) -> list[Tensor]:
    """Whisper's encoder with pairs of outputs averaged, on no more mel frames than the longest clip needs.

    The towers themselves take padded lengths only. Follows Qwen2AudioEncoder.forward with the masking of
    Qwen2AudioModel.forward, and AudioFlamingo3Encoder.forward, which is the same, step by step (transformers 5.23).
    """
    longest = min(max(frames) + ENCODE_MARGIN_FRAMES, mel.shape[-1])
    # A multiple of four keeps the pairs of the stride-2 convolution and of the pooling as they fall when padded.
    longest = min(-(-longest // 4) * 4, mel.shape[-1])
    mel = mel[..., :longest].to(tower.conv1.weight.device, tower.conv1.weight.dtype)
    hidden = nn.functional.gelu(tower.conv1(mel))
    hidden = nn.functional.gelu(tower.conv2(hidden)).permute(0, 2, 1)
    hidden = hidden + tower.embed_positions.weight[: hidden.shape[1]]
    valid = torch.tensor([(f - 1) // 2 + 1 for f in frames], device=hidden.device)
    keep = torch.arange(hidden.shape[1], device=hidden.device)[None] < valid[:, None]
    mask = create_bidirectional_mask(
        config=tower.config, inputs_embeds=hidden[..., :1], attention_mask=keep.to(torch.long)
    )
    for layer in tower.layers:
        hidden = layer(hidden, mask)
    hidden = tower.avg_pooler(hidden.permute(0, 2, 1)).permute(0, 2, 1)
    hidden = tower.layer_norm(hidden)
    return [hidden[i, : _pooled_whisper_tokens(f)] for i, f in enumerate(frames)]


QWEN2_AUDIO = Family(
    model_type="qwen2_audio",
    auto=AutoModelForMultimodalLM,
    lora_targets=_QWEN2_LINEARS,
    projector="multi_modal_projector",
    tower="model.audio_tower",
    audio_token="<|AUDIO|>",
    modality_tokens=("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"),
    frames_mask="feature_attention_mask",
    encode=_encode_pooled_whisper,
    audio_tokens=_pooled_whisper_tokens,
)

# Its processor would cut a longer clip into windows of 30 s; Equivox takes clips of one window (memory.refuse_unheard).
AUDIO_FLAMINGO3 = Family(
    model_type="audioflamingo3",
    auto=AutoModelForSeq2SeqLM,
    lora_targets=_QWEN2_LINEARS,
    projector="multi_modal_projector",
    tower="model.audio_tower",
    audio_token="<sound>",
    modality_tokens=("<sound>",),
    frames_mask="input_features_mask",
    encode=_encode_pooled_whisper,
    audio_tokens=_pooled_whisper_tokens,
)

FAMILIES = {family.model_type: family for family in (QWEN2_AUDIO, AUDIO_FLAMINGO3)}


def family_of(config: PretrainedConfig) -> Family:
    """The spec for a checkpoint's config. Raises ModelError naming the families that are known."""
    if config.model_type not in FAMILIES:
        raise ModelError(
            f"model_type {config.model_type!r} is not among the supported families: {', '.join(FAMILIES)}",
            field="model",
            cure="add a Family in reasoning/models/families.py",
        )
    return FAMILIES[config.model_type]
