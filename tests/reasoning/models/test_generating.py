"""Sampling: one prompt pass for all samples, the same tokens as plain generate, no audio token ever."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from data_builders.rows import read_corpus
from reasoning.models.generating import generate_ids
from reasoning.models.loading import load_model
from reasoning.models.prompter import Prompter, prompt_batch


@pytest.fixture
def ready(trained_family):
    corpus = read_corpus(trained_family.corpus)
    loaded = load_model(trained_family.model)
    prompter = Prompter(loaded, corpus.info.emotions)
    heard = loaded.memory().hear([Path(corpus.root / c.audio) for c in corpus.clips[:4]])
    prompts = [prompter.prompt_ids("a tone " * i, h, "no_think") for i, h in enumerate(heard)]
    return loaded, prompter, prompt_batch(prompter, prompts, heard)


def test_shared_prompt_passes_give_the_tokens_of_plain_generate_for_prompts_of_unequal_length(ready):
    loaded, prompter, batch = ready
    ours = generate_ids(loaded, batch, samples=3, max_new_tokens=70, do_sample=False)
    plain = loaded.base.generate(**batch, max_new_tokens=70, do_sample=False)[:, batch["input_ids"].shape[1] :]
    for row, expected in enumerate(plain.tolist()):
        for sample in ours[3 * row : 3 * row + 3]:
            assert sample == expected[: len(sample)]
            assert sample[-1] == prompter.eos_id


def test_the_audio_placeholder_is_never_sampled_however_likely_it_is(ready):
    loaded, _, batch = ready
    forbidden = loaded.modality_token_ids()
    with torch.no_grad():
        loaded.base.lm_head.weight[forbidden] = 50 * loaded.base.lm_head.weight[loaded.tokenizer.encode("0")[0]]
    sampled = generate_ids(loaded, batch, samples=8, max_new_tokens=20, do_sample=True, temperature=3.0)
    assert not {token for row in sampled for token in row} & set(forbidden)
