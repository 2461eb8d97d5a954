"""The seed checkpoint: an ordinary Qwen2-Audio folder that speaks, hears in the right places, and appears whole."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from reasoning.audio import SAMPLE_RATE
from reasoning.emotions import CREMA_D
from reasoning.errors import ModelError
from reasoning.models import seed, weights
from reasoning.models.families import QWEN2_AUDIO
from reasoning.models.memory import AudioMemory
from reasoning.models.seed import AUDIO_TOKENS, SeedSpec, build_seed


@pytest.fixture(scope="module")
def loaded(seed_folder: Path):
    """(model, processor) as any user loads them; a warning while loading fails every test that asks for them."""
    from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = Qwen2AudioForConditionalGeneration.from_pretrained(seed_folder).eval()
        return model, AutoProcessor.from_pretrained(seed_folder)


def speech(*texts: str) -> list[np.ndarray]:
    import soxr
    from hibari import SAMPLE_RATE as VOICE_RATE
    from hibari import Hibari

    voice = Hibari(threads=1)
    return [soxr.resample(voice(text, seed=1), VOICE_RATE, SAMPLE_RATE).astype(np.float32) for text in texts]


def chat(processor, *parts: dict) -> str:
    return processor.apply_chat_template([{"role": "user", "content": list(parts)}], add_generation_prompt=True)


def test_the_processor_pads_left_and_never_pads_with_the_end_token(loaded):
    _, processor = loaded
    assert processor.tokenizer.padding_side == "left"
    assert processor.tokenizer.pad_token_id != processor.tokenizer.eos_token_id
    for name in CREMA_D.names:
        assert len(processor.tokenizer.encode(f" {name}")) == 1
    assert [len(processor.tokenizer.encode(token)) for token in AUDIO_TOKENS] == [1, 1, 1]


@torch.no_grad()
def test_a_question_in_text_is_answered_coherently(loaded):
    model, processor = loaded
    inputs = processor(
        text=chat(processor, {"type": "text", "text": "What is the capital of France?"}), return_tensors="pt"
    )
    out = model.generate(**inputs, max_new_tokens=20, do_sample=False)
    answer = processor.decode(out[0, inputs["input_ids"].shape[1] :])
    assert "Paris" in answer
    assert answer.endswith("<|im_end|>")  # it stops by itself


@torch.no_grad()
def test_placeholders_are_as_many_as_the_tower_returns_and_audio_reaches_the_logits(loaded):
    model, processor = loaded
    clips = speech("Don't forget a jacket.", "I think I have a doctor's appointment.")
    prompt = chat(processor, {"type": "audio"}, {"type": "text", "text": "How does this sound?"})
    inputs = processor(text=[prompt] * 2, audio=clips, sampling_rate=SAMPLE_RATE, return_tensors="pt", padding=True)
    placeholders = (inputs["input_ids"] == model.config.audio_token_id).sum(1).tolist()
    memory = AudioMemory(model.model.audio_tower, processor.feature_extractor, QWEN2_AUDIO)
    assert placeholders == [len(heard.features) for heard in memory.hear(clips)]
    assert placeholders[0] != placeholders[1]
    logits = model(**inputs).logits[:, -1]
    silent = model(**{**inputs, "input_features": torch.zeros_like(inputs["input_features"])}).logits[:, -1]
    assert (logits - silent).abs().max() > 0.1


@torch.no_grad()
def test_speech_enters_the_language_model_with_the_moments_of_tokens(loaded):
    # Other sentences than the ones fit_norm() heard.
    model, processor = loaded
    memory = AudioMemory(model.model.audio_tower, processor.feature_extractor, QWEN2_AUDIO)
    heard = memory.hear(speech("The airplane is almost full.", "We'll stop in a couple of minutes."))
    features = torch.cat([clip.features for clip in heard])
    assert features.mean(0).abs().mean() < 0.5
    assert 0.7 < features.std(0).median() < 1.3
    audio = model.model.multi_modal_projector(features).norm(dim=1).mean()
    tokens = model.get_input_embeddings().weight.norm(dim=1).mean()
    assert 0.85 < audio / tokens < 1.15


def test_weights_carry_the_hub_names_and_the_head_is_stored(seed_folder, loaded):
    with safe_open(seed_folder / "model.safetensors", "pt") as file:
        names = set(file.keys())
        head = file.get_tensor("language_model.lm_head.weight")
        embeddings = file.get_tensor("language_model.model.embed_tokens.weight")
    assert {name.split(".")[0] for name in names} == {"audio_tower", "language_model", "multi_modal_projector"}
    assert torch.equal(head, embeddings)
    assert torch.equal(loaded[0].lm_head.weight, head)


def test_the_record_names_every_source_with_its_sum_and_licence(seed_folder):
    record = json.loads((seed_folder / "seed.json").read_text())
    assert record["spec"] == {"whisper": "base", "layers": seed.DEFAULT_LAYERS, "seed": 0}
    assert {source["licence"] for source in record["sources"]} == {"MIT", "Apache-2.0"}
    assert all(len(source["sha256"]) == 64 for source in record["sources"])


def test_a_text_part_with_an_empty_audio_field_renders_no_audio(loaded):
    # What a content part looks like after a round trip through Arrow.
    _, processor = loaded
    assert "<|AUDIO|>" not in chat(processor, {"type": "text", "text": "hi", "audio": None})
    with pytest.raises(Exception, match="unknown type image"):
        chat(processor, {"type": "image"})


@pytest.fixture
def small_sources(monkeypatch, tmp_path, small_encoder, small_llama, small_tokenizer):
    """build_seed on small random weights: every step but the download and the size is the real one."""
    monkeypatch.setenv("EQUIVOX_CACHE", str(tmp_path / "cache"))
    origin = [{"role": "small", "sha256": "0" * 64, "licence": "MIT"}]
    monkeypatch.setattr(seed, "whisper_encoder", lambda size, from_hub: (small_encoder, origin))
    monkeypatch.setattr(seed, "language_model", lambda from_hub: (small_llama, small_tokenizer, origin))
    return tmp_path


def test_hub_files_give_the_same_names_as_the_registry(
    small_encoder, small_llama, small_tokenizer, tmp_path, monkeypatch
):
    """As the hub names them: whole models, the encoder beside a decoder, the Llama under `model.` in bfloat16."""
    stored = {f"model.encoder.{name}": w for name, w in small_encoder.items()}
    save_file(stored | {"model.decoder.layer_norm.weight": torch.ones(2)}, tmp_path / "whisper")
    save_file({f"model.{name}": w.bfloat16() for name, w in small_llama.items()}, tmp_path / "llama")
    small_tokenizer.save(str(tmp_path / "tokenizer"))
    places = {seed.WHISPER_HUB["base"]: "whisper", seed.SMOLLM_HUB: "llama", seed.SMOLLM_HUB_TOKENIZER: "tokenizer"}
    monkeypatch.setattr(weights, "fetch", lambda source: tmp_path / places[source])
    encoder, origins = seed.whisper_encoder("base", from_hub=True)
    llama, tokenizer, _ = seed.language_model(from_hub=True)
    torch.testing.assert_close(encoder, dict(small_encoder))
    torch.testing.assert_close(llama, {name: w.bfloat16().float() for name, w in small_llama.items()})
    assert tokenizer.get_vocab() == small_tokenizer.get_vocab()
    assert origins[0]["hub"] == "openai/whisper-base@e37978b90ca9030d5170a5c07aadb050351a65bb"


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_second_run_changes_nothing_and_another_spec_is_refused(small_sources):
    out = small_sources / "seed"
    assert build_seed(out, SeedSpec(layers=2), "registry")
    before = files(out)
    assert not build_seed(out, SeedSpec(layers=2), "registry")
    assert files(out) == before
    with pytest.raises(ModelError, match=r"'layers': 2.*asked for.*'layers': 1.*choose another --out"):
        build_seed(out, SeedSpec(layers=1), "registry")


def test_the_same_spec_gives_the_same_weights_and_another_seed_another_projector(small_sources):
    folders = [small_sources / name for name in ("a", "b", "c")]
    for folder, number in zip(folders, (0, 0, 1), strict=True):
        build_seed(folder, SeedSpec(layers=2, seed=number), "registry")
    stored = [files(folder)["model.safetensors"] for folder in folders]
    assert stored[0] == stored[1]
    assert stored[0] != stored[2]


def test_a_build_that_fails_half_way_leaves_nothing(small_sources, monkeypatch):
    def fail(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(seed, "_versions", fail)  # after the weights are written
        with pytest.raises(KeyboardInterrupt):
            build_seed(small_sources / "out" / "seed", SeedSpec(layers=2), "registry")
    assert list((small_sources / "out").iterdir()) == []


def test_what_a_killed_build_left_is_dropped_by_the_next(small_sources):
    leftover = small_sources / ".seed.partial"
    leftover.mkdir()
    (leftover / "stray.safetensors").write_bytes(b"half")
    build_seed(small_sources / "seed", SeedSpec(layers=2), "registry")
    assert not leftover.exists()
    assert not (small_sources / "seed" / "stray.safetensors").exists()


def test_a_folder_of_something_else_is_never_touched(small_sources):
    out = small_sources / "mine"
    out.mkdir()
    (out / "thesis.txt").write_text("ten years of work")
    with pytest.raises(ModelError, match="exists and is no seed folder"):
        build_seed(out, SeedSpec(layers=2), "registry")
    assert files(out) == {"thesis.txt": b"ten years of work"}


@pytest.mark.parametrize("layers", [0, 4])
def test_a_depth_the_encoder_has_not_is_refused(small_sources, layers):
    with pytest.raises(ModelError, match=f"layers: is {layers}, but Whisper base's encoder has 1 to 3"):
        build_seed(small_sources / "seed", SeedSpec(layers=layers), "registry")
    assert not (small_sources / "seed").exists()


def test_an_unknown_whisper_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"whisper: is 'huge', expected one of base, tiny.en"):
        build_seed(tmp_path / "seed", SeedSpec(whisper="huge"))
