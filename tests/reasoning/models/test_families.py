"""Every family against transformers' own model: features of clips of any length, and the commands that train it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2Config

import launch.grpo
import launch.sft
from reasoning.emotions import CREMA_D
from reasoning.errors import ModelError
from reasoning.models.families import FAMILIES, family_of
from reasoning.models.loading import load_model
from reasoning.models.memory import mel_frames
from reasoning.models.prompter import Prompter, prompt_batch

CONFIGS = Path(__file__).parents[3] / "launch" / "configs"
SECONDS = (0.1, 0.987, 3.0, 12.34, 29.99, 30.0)


@torch.no_grad()
def test_features_equal_those_of_the_padded_model_for_clips_of_any_length(untrained_family):
    """Alone and in a batch, up to the whole window: what transformers puts where the placeholders were."""
    loaded = load_model(untrained_family)
    (placeholder,) = loaded.tokenizer.convert_tokens_to_ids([loaded.family.audio_token])
    handed = []
    loaded.base.base_model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: handed.append(kwargs["inputs_embeds"][0]), with_kwargs=True
    )
    rng = np.random.default_rng(0)
    waves = [rng.normal(0, 0.1, int(seconds * 16_000)).astype(np.float32) for seconds in SECONDS]
    mel, frames = mel_frames(loaded.processor.feature_extractor, [(wave, "noise") for wave in waves])
    mask = (torch.arange(mel.shape[-1])[None] < torch.tensor(frames)[:, None]).long()
    together = loaded.memory().hear(waves)
    for i, heard in enumerate(together):
        tokens = loaded.family.audio_tokens(frames[i])
        audio = {"input_features": mel[i : i + 1], loaded.family.frames_mask: mask[i : i + 1]}
        loaded.base(
            input_ids=torch.full((1, tokens), placeholder), attention_mask=torch.ones(1, tokens).long(), **audio
        )
        (alone,) = loaded.memory().hear([waves[i]])
        torch.testing.assert_close(loaded.projector(heard.features), handed.pop(), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(alone.features, heard.features, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def logits(loaded):
    prompter = Prompter(loaded, CREMA_D)
    heard = loaded.memory().hear([np.sin(np.arange(16_000) / 9).astype(np.float32)])
    batch = prompt_batch(prompter, [prompter.prompt_ids("a tone", heard[0], "no_think")], heard)
    return loaded.model(**batch).logits


def test_both_commands_train_an_adapter_of_a_checkpoint_of_any_family(trained_family, tmp_path):
    common = {
        "model_name_or_path": trained_family.model, "data": trained_family.corpus, "max_steps": 1, "logging_steps": 1,
        "save_strategy": "no", "report_to": "none", "bf16": "false", "per_device_train_batch_size": 4, "lora_r": 4,
        "warmup_steps": 0, "learning_rate": 1e-3,
    }  # fmt: skip
    sft = {"config": CONFIGS / "sft.yaml", "output_dir": tmp_path / "sft"}
    grpo = {
        "config": CONFIGS / "grpo.yaml", "output_dir": tmp_path / "grpo", "adapter": tmp_path / "sft",
        "num_generations": 4, "per_device_train_batch_size": 32, "gradient_accumulation_steps": 1,
        "min_reward_spread": 0.0, "kl_weight": 0,
    }  # fmt: skip
    seen = [logits(load_model(trained_family.model))]
    for command, options in ((launch.sft.main, sft), (launch.grpo.main, grpo)):
        command([part for key, value in (common | options).items() for part in (f"--{key}", str(value))])
        out = options["output_dir"]
        logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        assert max(float(line.get("grad_norm", 0)) for line in logged) > 0
        seen.append(logits(load_model(trained_family.model, out)))
        assert (seen[-1] - seen[-2]).abs().max() > 1e-3
    assert max(float(line.get("reward_std", 0)) for line in logged) > 0, "the last command was taught by rewards"


def test_a_family_that_nobody_described_is_refused_with_those_that_are_known():
    with pytest.raises(ModelError, match=f"'qwen2' is not among .*: {', '.join(FAMILIES)}"):
        family_of(Qwen2Config())
