"""The CTranslate2 reader: against a writer made from the format's description, and against what Whisper must be."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch

from reasoning.errors import ModelError
from reasoning.models.whisper_ct2 import encoder_state, read_model_bin

CODES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}


def write_model_bin(variables, aliases=(), version=6, spec="WhisperSpec") -> bytes:
    def string(text: str) -> bytes:
        raw = text.encode() + b"\0"
        return struct.pack("<H", len(raw)) + raw

    out = struct.pack("<I", version) + string(spec) + struct.pack("<II", 3, len(variables))
    for name, array in variables.items():
        out += string(name) + struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        out += struct.pack("<BI", CODES[array.dtype.name], array.nbytes) + array.tobytes()
    out += struct.pack("<I", len(aliases))
    for alias, name in aliases:
        out += string(alias) + string(name)
    return out


def encoder_variables(width=4, layers=2, mel=3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float16)

    made = {"encoder/position_encodings/encodings": draw(5, width)}
    made |= {"encoder/layer_norm/gamma": draw(width), "encoder/layer_norm/beta": draw(width)}
    for name, inputs in (("conv1", mel), ("conv2", width)):
        made |= {f"encoder/{name}/weight": draw(width, inputs, 3), f"encoder/{name}/bias": draw(width)}
    for layer in range(layers):
        at = f"encoder/layer_{layer}"
        for norm in ("self_attention", "ffn"):
            made |= {f"{at}/{norm}/layer_norm/gamma": draw(width), f"{at}/{norm}/layer_norm/beta": draw(width)}
        bias = draw(3 * width)
        bias[width : 2 * width] = 0
        made |= {f"{at}/self_attention/linear_0/weight": draw(3 * width, width)}
        made |= {f"{at}/self_attention/linear_0/bias": bias}
        made |= {f"{at}/self_attention/linear_1/weight": draw(width, width)}
        made |= {f"{at}/self_attention/linear_1/bias": draw(width)}
        made |= {f"{at}/ffn/linear_0/weight": draw(2 * width, width), f"{at}/ffn/linear_0/bias": draw(2 * width)}
        made |= {f"{at}/ffn/linear_1/weight": draw(width, 2 * width), f"{at}/ffn/linear_1/bias": draw(width)}
    return made


def test_every_variable_and_alias_comes_back_with_its_type_and_shape():
    variables = {
        "a/weight": np.arange(6, dtype=np.float16).reshape(2, 3),
        "b": np.array([-1, 7], dtype=np.int8),
        "scalar": np.array(5, dtype=np.int32),
    }
    read = read_model_bin(write_model_bin(variables, aliases=[("tied", "a/weight")]))
    assert set(read) == {*variables, "tied"}
    for name, array in {**variables, "tied": variables["a/weight"]}.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)


@pytest.mark.parametrize("cut", [0, 3, 40, -1])
def test_a_file_that_ends_early_is_refused(cut):
    blob = write_model_bin({"a": np.zeros((8, 8), np.float32)})
    with pytest.raises(ModelError, match="no whole CTranslate2 model"):
        read_model_bin(blob[:cut])


def test_another_version_or_model_is_refused():
    with pytest.raises(ModelError, match="version 7 of 'WhisperSpec'"):
        read_model_bin(write_model_bin({}, version=7))
    with pytest.raises(ModelError, match="'TransformerSpec'"):
        read_model_bin(write_model_bin({}, spec="TransformerSpec"))


def test_the_encoder_has_exactly_the_names_and_shapes_that_transformers_expects():
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    state = encoder_state(encoder_variables())
    config = WhisperConfig(
        num_mel_bins=3,
        d_model=4,
        encoder_layers=2,
        encoder_attention_heads=1,
        encoder_ffn_dim=8,
        max_source_positions=5,
    )
    WhisperEncoder(config).load_state_dict(state, strict=True)


def test_the_fused_projection_is_split_in_the_order_query_key_value():
    variables = encoder_variables(width=4)
    state = encoder_state(variables)
    fused = torch.from_numpy(variables["encoder/layer_1/self_attention/linear_0/weight"].astype(np.float32))
    for i, name in enumerate("qkv"):
        torch.testing.assert_close(state[f"layers.1.self_attn.{name}_proj.weight"], fused[4 * i : 4 * i + 4])
    assert "layers.1.self_attn.k_proj.bias" not in state


def test_a_key_bias_a_missing_variable_and_quantised_weights_are_refused():
    biased = encoder_variables()
    biased["encoder/layer_0/self_attention/linear_0/bias"][5] = 1
    with pytest.raises(ModelError, match="key bias"):
        encoder_state(biased)
    missing = encoder_variables()
    del missing["encoder/layer_1/ffn/linear_1/bias"]
    with pytest.raises(ModelError, match="holds no variable 'encoder/layer_1/ffn/linear_1/bias'"):
        encoder_state(missing)
    quantised = encoder_variables() | {"encoder/conv1/weight": np.zeros((4, 3, 3), np.int8)}
    with pytest.raises(ModelError, match="int8"):
        encoder_state(quantised)


@pytest.fixture(scope="module")
def whisper_base() -> dict[str, torch.Tensor]:
    from reasoning.models.seed import whisper_encoder

    return whisper_encoder("base")[0]


def test_the_positions_are_the_sinusoids_of_the_whisper_paper(whisper_base):
    # Radford et al. (2022) compute them; they are not learned. A reader off by one byte, axis or variable shows here.
    steps = np.arange(256) * np.log(10_000) / 255
    angles = np.arange(1500)[:, None] * np.exp(-steps)[None]
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    np.testing.assert_allclose(whisper_base["embed_positions.weight"].numpy(), expected, atol=2e-3)  # float16 file


@torch.no_grad()
def test_each_cut_gives_the_hidden_states_of_transformers_whisper(whisper_base):
    from transformers import Qwen2AudioEncoderConfig, WhisperConfig
    from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    from reasoning.models.seed import cut_encoder, encoder_config

    whisper = WhisperEncoder(
        WhisperConfig(d_model=512, encoder_layers=6, encoder_attention_heads=8, encoder_ffn_dim=2048, num_mel_bins=80)
    ).eval()
    whisper.load_state_dict(whisper_base)
    mel = torch.randn(1, 80, 3000, generator=torch.Generator().manual_seed(0))
    states = whisper(mel, output_hidden_states=True).hidden_states  # [l]: after l layers; the last one normalised
    for layers in (2, 4):
        config = {k: v for k, v in encoder_config(whisper_base, layers).items() if k != "model_type"}
        tower = Qwen2AudioEncoder(Qwen2AudioEncoderConfig(**config)).eval()
        tower.load_state_dict(cut_encoder(whisper_base, layers))
        pooled = states[layers].unflatten(1, (-1, 2)).mean(2)
        torch.testing.assert_close(tower(mel).last_hidden_state, tower.layer_norm(pooled), atol=1e-4, rtol=1e-4)
