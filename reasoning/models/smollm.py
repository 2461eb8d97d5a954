"""SmolLM2-135M-Instruct, from GGUF or safetensors, as Qwen2 weights and a tokenizer.

vLLM's Qwen2-Audio builds a Qwen2 language model whatever the text config says. SmolLM2 is a Llama, and a Llama without
biases is a Qwen2 whose q, k and v biases are zero: the same function, bit for bit.
"""

from pathlib import Path

import gguf
import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from reasoning.errors import ModelError

# What the shapes of the weights do not say (config.json of the model; the GGUF's metadata is checked against it).
HEADS, KEY_VALUE_HEADS, ROPE_THETA, RMS_NORM_EPS, CONTEXT = 9, 3, 100_000.0, 1e-5, 8192
# BOS, EOS and unknown as the model was trained. PAD is not EOS, as it is upstream: code that masks padding by token
# would mask the end of every answer with it, and the model would never learn to stop.
SPECIAL = {"bos": "<|im_start|>", "eos": "<|im_end|>", "unk": "<|endoftext|>", "pad": "<|endoftext|>"}

_GGUF_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def read_gguf(path: Path) -> tuple[dict[str, torch.Tensor], Tokenizer]:
    """The model's float32 weights under transformers' Llama names (without `model.`), and its tokenizer.

    path: a GGUF file of any quantisation the gguf library reads. Raises ModelError when it is not this model.
    """
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError, OSError) as error:
        raise ModelError(f"is no GGUF file: {error}", row=path.name) from error
    _check_metadata(reader, path)
    state = {}
    for entry in reader.tensors:
        weight = gguf.dequantize(entry.data, entry.tensor_type)
        if ".attn_q." in entry.name or ".attn_k." in entry.name:
            weight = _undo_rotary_order(weight, HEADS if ".attn_q." in entry.name else KEY_VALUE_HEADS)
        state[_llama_name(entry.name)] = torch.from_numpy(np.array(weight, dtype=np.float32))
    return state, _tokenizer(reader)


def _check_metadata(reader: gguf.GGUFReader, path: Path) -> None:
    expected = {
        "general.architecture": "llama",
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KEY_VALUE_HEADS,
        "llama.rope.freq_base": ROPE_THETA,
        "llama.attention.layer_norm_rms_epsilon": RMS_NORM_EPS,
        "llama.context_length": CONTEXT,
        "tokenizer.ggml.pre": "smollm",
    }
    for key, value in expected.items():
        field = reader.get_field(key)
        found = None if field is None else field.contents()
        same = np.isclose(found, value, rtol=1e-6) if isinstance(found, float) else found == value
        if not same:
            raise ModelError(f"is {found!r}, expected {value!r}", row=path.name, field=key)


def _llama_name(name: str) -> str:
    if name == "token_embd.weight":
        return "embed_tokens.weight"
    if name == "output_norm.weight":
        return "norm.weight"
    _, layer, kind, _ = name.split(".")
    return f"layers.{layer}.{_GGUF_NAMES[kind]}.weight"


def _undo_rotary_order(weight: np.ndarray, heads: int) -> np.ndarray:
    # GGUF interleaves the two halves of each head's rotary pairs; transformers keeps the halves apart.
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def _tokenizer(reader: gguf.GGUFReader) -> Tokenizer:
    def listed(key: str) -> list:
        field = reader.get_field(f"tokenizer.ggml.{key}")
        assert field is not None
        return field.contents()

    tokens = listed("tokens")
    merges = [tuple(merge.split(" ")) for merge in listed("merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    # GGUF's "smollm" pre-tokenizer: every digit alone, then GPT-2's byte-level words.
    digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    tokenizer.decoder = decoders.ByteLevel()
    control = gguf.TokenType.CONTROL
    special = [token for token, kind in zip(tokens, listed("token_type"), strict=True) if kind == control]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return tokenizer


def as_qwen2(llama: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same weights for transformers' Qwen2Model: Llama's, and zero biases for the q, k and v projections."""
    state = dict(llama)
    for name, weight in llama.items():
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            state[name.removesuffix("weight") + "bias"] = weight.new_zeros(weight.shape[0])
    return state


def qwen2_config(state: dict[str, torch.Tensor]) -> dict:
    """Keyword arguments of a Qwen2Config for these weights (names as read_gguf gives them)."""
    vocabulary, width = state["embed_tokens.weight"].shape
    return {
        "model_type": "qwen2",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": state["layers.0.mlp.up_proj.weight"].shape[0],
        "num_hidden_layers": sum(name.endswith("mlp.up_proj.weight") for name in state),
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_VALUE_HEADS,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": RMS_NORM_EPS,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
        "tie_word_embeddings": False,
    }
