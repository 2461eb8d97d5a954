"""Guided decoding: always readable, the free policy's proportions among what is allowed, the same mask in training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from data_builders.rows import read_corpus
from reasoning.models.generating import generate_ids
from reasoning.models.guide import Guide, unpack
from reasoning.models.loading import load_model
from reasoning.models.prompter import Prompter, prompt_batch
from reasoning.response import read_response, write_response


@pytest.fixture(scope="module")
def ready(trained_checkpoint):
    corpus = read_corpus(trained_checkpoint.corpus)
    loaded = load_model(trained_checkpoint.model)
    prompter = Prompter(loaded, corpus.info.emotions)
    heard = loaded.memory().hear([Path(corpus.root / c.audio) for c in corpus.clips[:4]])
    prompts = [prompter.prompt_ids("a tone " * i, h, "no_think") for i, h in enumerate(heard)]
    guide = Guide(prompter.tokenizer, prompter.emotions, "no_think")
    return loaded, prompter, prompt_batch(prompter, prompts, heard), guide


def sampled(ready, guide, **sampling) -> list[list[int]]:
    loaded, _, batch, _ = ready
    torch.manual_seed(0)
    return generate_ids(loaded, batch, samples=6, max_new_tokens=96, guide=guide, **sampling)


def test_guided_samples_can_all_be_read_where_free_ones_cannot(ready):
    _, prompter, _, guide = ready
    hot = {"do_sample": True, "temperature": 3.0, "top_k": 0}
    problems = {
        name: [read_response(prompter.tokenizer.decode(ids, skip_special_tokens=True), prompter.emotions).problems
               for ids in sampled(ready, given, **hot)]
        for name, given in (("guided", guide), ("free", None))
    }  # fmt: skip
    assert not any(problems["guided"])
    assert all(problems["free"])


def test_guided_greedy_text_is_the_free_one_where_that_can_be_read(ready):
    _, prompter, _, guide = ready
    free, guided = sampled(ready, None, do_sample=False), sampled(ready, guide, do_sample=False)
    readable = [
        not read_response(prompter.tokenizer.decode(ids, skip_special_tokens=True), prompter.emotions).problems
        for ids in free
    ]
    assert any(readable)
    assert [a for a, ok in zip(free, readable, strict=True) if ok] == [
        b for b, ok in zip(guided, readable, strict=True) if ok
    ]


def test_each_step_allows_what_the_grammar_can_go_on_with_and_after_the_last_share_only_the_end(ready):
    loaded, prompter, _, guide = ready
    vocabulary = loaded.base.get_output_embeddings().weight.shape[0]
    text = write_response([0.3, 0.0, 0.2, 0.0, 0.4, 0.1], "sad", prompter.emotions)
    ids = [*prompter.encode(text), prompter.eos_id]
    state, masks = guide.start(), torch.zeros(len(ids), -(-vocabulary // 32), dtype=torch.int32)
    for mask, token in zip(masks, ids, strict=True):
        assert not state.ended
        state.fill(mask)
        state.take(token)
    assert state.ended
    allowed = unpack(masks, vocabulary)
    assert all(row[token] for row, token in zip(allowed, ids, strict=True))
    assert not allowed[:, loaded.modality_token_ids()].any()
    last_share = len(prompter.encode(text[: text.index("sad 0.10") + len("sad 0.")]))
    for only in (last_share, -1):
        assert allowed[only].nonzero().flatten().tolist() == [ids[only]]


def test_a_token_off_the_grammar_ends_the_guidance(ready):
    _, prompter, _, guide = ready
    state = guide.start()
    for token in prompter.encode("<answer>Vote: bored"):
        assert not state.ended
        state.take(token)
        if state.ended:
            break
    assert state.ended


def test_bits_are_unpacked_as_a_naive_reading_of_them():
    masks = torch.randint(-(2**31), 2**31 - 1, (3, 4), dtype=torch.int32)
    naive = [[bool((word & 0xFFFFFFFF) >> bit & 1) for word in row for bit in range(32)] for row in masks.tolist()]
    assert unpack(masks, 100).tolist() == [row[:100] for row in naive]
