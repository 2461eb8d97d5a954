"""Encode once: the same features as the padded encoder, each clip through the tower once, nothing truncated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from data_builders.rows import read_corpus
from reasoning.audio import read_audio
from reasoning.errors import AudioError
from reasoning.models.answer_head import add_answer_head
from reasoning.models.loading import load_model
from reasoning.models.memory import AudioMemory, batch_heard
from reasoning.models.prompter import Prompter, prompt_batch
from reasoning.prompts import conversation
from reasoning.training.collate import AnswerCollator
from reasoning.training.objective import vote_kl_nats


@pytest.fixture(scope="module")
def hearing(trained_family):
    corpus = read_corpus(trained_family.corpus)
    paths = [corpus.root / c.audio for c in corpus.clips[:5]]
    return load_model(trained_family.model), paths, corpus.info.emotions


def processor_inputs(loaded, paths, emotions, transcript="a tone"):
    """What transformers' own processor makes of the same conversation: the oracle."""
    messages = conversation(transcript, True, "no_think", emotions)
    text = loaded.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    waves = [read_audio(p) for p in paths]
    return loaded.processor(
        text=[text] * len(paths), audio=waves, return_tensors="pt",
        text_kwargs={"padding": True}, audio_kwargs={"padding": "max_length", "sampling_rate": 16_000},
    )  # fmt: skip


def test_prompts_and_logits_equal_those_of_the_processor_and_the_padded_encoder(hearing):
    loaded, paths, emotions = hearing
    prompter, memory = Prompter(loaded, emotions), loaded.memory()
    heard = memory.hear(paths)
    batch = prompt_batch(prompter, [prompter.prompt_ids("a tone", h, "no_think") for h in heard], heard)
    direct = processor_inputs(loaded, paths, emotions)
    assert torch.equal(batch["input_ids"], direct["input_ids"])
    with torch.no_grad():
        ours, theirs = loaded.model(**batch).logits, loaded.model(**direct).logits
    kept = batch["attention_mask"].bool()
    torch.testing.assert_close(ours[kept], theirs[kept], atol=1e-5, rtol=1e-4)


def test_cutting_mel_frames_at_the_valid_length_would_change_the_features(hearing):
    """The margin matters: without it the last frames see the edge (why ENCODE_MARGIN_FRAMES exists)."""
    loaded, paths, _ = hearing
    tower, memory = loaded.family.tower_of(loaded.base), loaded.memory()
    right = memory.hear(paths[:1])[0]
    wave = read_audio(paths[0])
    out = loaded.processor.feature_extractor(
        [wave], sampling_rate=16_000, return_attention_mask=True, padding="max_length", return_tensors="pt"
    )
    frames = int(out["attention_mask"].sum())
    cut = out["input_features"][..., : frames - frames % 4]
    wrong = loaded.family.encode(tower, cut, [cut.shape[-1]])[0]
    n = min(len(wrong), len(right.features))
    assert (wrong[:n] - right.features[:n]).abs().max() > 1e-3


def test_the_sft_loss_and_its_gradients_are_the_same_with_cached_and_with_direct_features(hearing):
    """Cross-entropy and vote KL of the shared forward, and the gradients of the projector and of a linear layer."""
    loaded, paths, emotions = hearing
    collator = AnswerCollator(Prompter(loaded, emotions), loaded.memory(), level="no_think", seed=0)
    rows = [
        {"id": str(p), "audio": str(p), "transcript": "a tone", "votes": [i, 1, 2, 0, 1, 3]}
        for i, p in enumerate(paths)
    ]
    cached, direct = collator(rows), processor_inputs(loaded, paths, emotions)
    add_answer_head(loaded.base, collator.prompter.labels)
    layer = loaded.base.get_submodule("model.language_model.layers.0.self_attn.q_proj").weight
    weights = [*loaded.projector.parameters(), layer]
    losses, gradients = [], []
    for weight in weights:
        weight.requires_grad_(True)
    for audio in (cached, direct):
        heard = {name: audio[name] for name in ("input_features", loaded.family.frames_mask)}
        batch = {name: value for name, value in cached.items() if name != "votes"} | heard
        out = loaded.model(**batch, answer_head=True)
        loss = vote_kl_nats(out.label_logits, cached["votes"]).mean() - out.logps.mean() - out.label_mass.mean()
        losses.append(loss.item())
        gradients.append(torch.autograd.grad(loss, weights))
    for weight in weights:
        weight.requires_grad_(False)
    assert cached["input_features"].shape != direct["input_features"].shape
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)
    assert min(gradient.abs().max() for gradient in gradients[0]) > 1e-3


def test_each_clip_passes_the_tower_once_and_forgetting_costs_passes_not_answers(hearing):
    loaded, paths, _ = hearing
    memory = loaded.memory()
    first = memory.hear([*paths, paths[0]])
    again = memory.hear(paths[::-1])
    assert memory.passes == len(paths)
    assert torch.equal(first[0].features, again[-1].features)
    small = AudioMemory(memory.tower, memory.feature_extractor, memory.family, max_gib=1e-9)
    assert torch.equal(small.hear(paths[:2])[0].features, first[0].features)
    small.hear(paths[:2])
    assert small.passes > 2


def test_features_are_the_same_under_autocast(hearing):
    loaded, paths, _ = hearing
    with torch.autocast("cpu", torch.bfloat16):
        inside = loaded.memory().hear(paths[:1])[0].features
    assert torch.equal(inside, loaded.memory().hear(paths[:1])[0].features)


def test_a_clip_longer_than_the_model_hears_is_refused_by_name_and_length(hearing):
    loaded, *_ = hearing
    noise = np.random.default_rng(0).standard_normal(31 * 16_000).astype(np.float32) * 0.1
    with pytest.raises(AudioError, match=r"\[long\].*31\.0 s.*30 s"):
        loaded.memory().hear([noise], ["long"])
    with pytest.raises(AudioError, match="nowhere"):
        loaded.memory().hear([Path("nowhere.wav")], ["clip 7"])


def test_batches_pad_features_and_mask_frames_by_clip(hearing):
    loaded, paths, _ = hearing
    heard = loaded.memory().hear(paths)
    batch = batch_heard(heard, loaded.family)
    assert batch[loaded.family.frames_mask].sum(1).tolist() == [h.frames for h in heard]
    for row, h in zip(batch["input_features"], heard, strict=True):
        assert torch.equal(row[: len(h.features)], h.features)
        assert not row[len(h.features) :].any()
