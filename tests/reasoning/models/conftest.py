"""The real seed model, built once a session, and small random stand-ins for its sources."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from reasoning.models import smollm


@pytest.fixture(scope="session")
def seed_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`equivox seed --source registry` with real weights; downloads are kept in the clone's cache."""
    from reasoning.models.seed import build_seed

    folder = tmp_path_factory.mktemp("models") / "seed"
    assert build_seed(folder, source="registry")
    return folder


@pytest.fixture
def small_encoder() -> dict[str, torch.Tensor]:
    """Random weights of a 3-layer, 64-wide encoder, as whisper_encoder() gives them."""
    from transformers import Qwen2AudioEncoderConfig
    from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder

    config = Qwen2AudioEncoderConfig(
        num_mel_bins=80, encoder_layers=3, encoder_attention_heads=1, encoder_ffn_dim=64, d_model=64
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Qwen2AudioEncoder(config).state_dict()


@pytest.fixture
def small_llama() -> dict[str, torch.Tensor]:
    """Random weights of a 2-layer, 36-wide Llama with SmolLM2's head counts, as language_model() gives them."""
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        vocab_size=len(small_vocabulary()),
        hidden_size=36,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=smollm.HEADS,
        num_key_value_heads=smollm.KEY_VALUE_HEADS,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaModel(config).state_dict()


def small_vocabulary() -> dict[str, int]:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return {token: i for i, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}


@pytest.fixture
def small_tokenizer() -> Tokenizer:
    """Bytes as tokens, with SmolLM2's special tokens."""
    tokenizer = Tokenizer(models.BPE(vocab=small_vocabulary(), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return tokenizer


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh $EQUIVOX_CACHE, and pip cut off from every index: only PIP_FIND_LINKS, set by a test, can serve files."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("EQUIVOX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
