"""Whisper encoders out of CTranslate2's model.bin, read with numpy alone.

The file (little-endian): u32 version, string spec, u32 revision, u32 count, then per variable: string name, u8 rank,
u32 per dimension, u8 type, u32 bytes, data; then u32 aliases, each two strings. A string is u16 length and bytes ending
in NUL. Source: `ModelSpec.save` in CTranslate2's python/ctranslate2/specs/model_spec.py, binary version 6.
"""

import struct
from collections.abc import Mapping

import numpy as np
import torch

from reasoning.errors import ModelError

_TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def read_model_bin(blob: bytes) -> dict[str, np.ndarray]:
    """Every variable of a CTranslate2 Whisper model, by name, as views into blob (bytes of model.bin).

    Raises ModelError when blob is no such file, is of another version, or ends early.
    """
    at = 0

    def number(code: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from("<" + code, blob, at)
        at += struct.calcsize(code)
        return value

    def string() -> str:
        nonlocal at
        size = number("H")
        at += size
        return blob[at - size : at].rstrip(b"\0").decode()

    try:
        version, spec, _revision = number("I"), string(), number("I")
        if version != 6 or spec != "WhisperSpec":
            raise ModelError(f"is version {version} of {spec!r}, expected version 6 of 'WhisperSpec'", row="model.bin")
        variables: dict[str, np.ndarray] = {}
        for _ in range(number("I")):
            name, rank = string(), number("B")
            shape = [number("I") for _ in range(rank)]
            kind, size = _TYPES[number("B")], number("I")
            variables[name] = np.frombuffer(blob, kind, size // np.dtype(kind).itemsize, at).reshape(shape)
            at += size
        for _ in range(number("I")):
            alias, name = string(), string()
            variables[alias] = variables[name]
    except (struct.error, UnicodeDecodeError, KeyError, ValueError) as error:
        raise ModelError(f"is no whole CTranslate2 model: {error} (at byte {at})", row="model.bin") from error
    return variables


def encoder_state(variables: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The encoder's float32 weights under the names of transformers' WhisperEncoder, which Qwen2AudioEncoder shares.

    variables: from read_model_bin, stored as float16 or float32. Raises ModelError on a missing or quantised variable.
    """
    try:
        return _encoder_state(variables)
    except KeyError as error:
        raise ModelError(f"holds no variable {error}", row="model.bin") from error


def _encoder_state(variables: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    def tensor(name: str) -> torch.Tensor:
        if variables[name].dtype not in (np.float16, np.float32):
            raise ModelError(f"{name} is {variables[name].dtype}, expected floating point", row="model.bin")
        return torch.from_numpy(variables[name].astype(np.float32))

    state = {"embed_positions.weight": tensor("encoder/position_encodings/encodings")}

    def copy(theirs: str, ours: str, names: tuple[str, str] = ("weight", "bias")) -> None:
        state[f"{ours}.weight"], state[f"{ours}.bias"] = tensor(f"{theirs}/{names[0]}"), tensor(f"{theirs}/{names[1]}")

    norm = ("gamma", "beta")
    copy("encoder/conv1", "conv1")
    copy("encoder/conv2", "conv2")
    copy("encoder/layer_norm", "layer_norm", norm)
    layer = 0
    while f"encoder/layer_{layer}/ffn/linear_0/weight" in variables:
        theirs, ours = f"encoder/layer_{layer}", f"layers.{layer}"
        copy(f"{theirs}/self_attention/layer_norm", f"{ours}.self_attn_layer_norm", norm)
        copy(f"{theirs}/self_attention/linear_1", f"{ours}.self_attn.out_proj")
        copy(f"{theirs}/ffn/layer_norm", f"{ours}.final_layer_norm", norm)
        copy(f"{theirs}/ffn/linear_0", f"{ours}.fc1")
        copy(f"{theirs}/ffn/linear_1", f"{ours}.fc2")
        weights = tensor(f"{theirs}/self_attention/linear_0/weight").chunk(3)
        biases = tensor(f"{theirs}/self_attention/linear_0/bias").chunk(3)
        for name, weight, bias in zip("qkv", weights, biases, strict=True):
            state[f"{ours}.self_attn.{name}_proj.weight"] = weight.clone()
            state[f"{ours}.self_attn.{name}_proj.bias"] = bias.clone()
        if state.pop(f"{ours}.self_attn.k_proj.bias").any():  # Whisper has none; CTranslate2 stores zeros
            raise ModelError(f"{theirs} has a key bias, which Whisper has not", row="model.bin")
        layer += 1
    return state
