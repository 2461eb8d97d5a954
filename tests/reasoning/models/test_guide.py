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


def test_allowed_tokens_of_an_answer_include_it_and_only_what_the_grammar_can_go_on_with(ready):
    loaded, prompter, _, guide = ready
    vocabulary = loaded.base.get_output_embeddings().weight.shape[0]
    text = write_response([0.3, 0.0, 0.2, 0.0, 0.4, 0.1], "sad", prompter.emotions)
    ids = [*prompter.encode(text), prompter.eos_id]
    masks = unpack(guide.allowed(torch.tensor([[*ids, 0, 0]]), vocabulary), vocabulary)[0]
    assert all(masks[i, token] for i, token in enumerate(ids))
    assert masks[len(ids) :].all(), "after the end nothing is masked"
    last_share = len(prompter.encode(text[: text.index("sad 0.10") + len("sad 0.")]))
    only = masks[last_share].nonzero().flatten().tolist()
    assert only == [ids[last_share]], "the last share is what is left"
    assert not masks[: len(ids), loaded.modality_token_ids()].any()


def test_an_answer_cut_short_or_off_the_grammar_is_masked_up_to_there(ready):
    loaded, prompter, _, guide = ready
    vocabulary = loaded.base.get_output_embeddings().weight.shape[0]
    ids = prompter.encode("<answer>Vote: bored")
    masks = unpack(guide.allowed(torch.tensor([ids]), vocabulary), vocabulary)[0]
    allowed = [bool(masks[i, token]) for i, token in enumerate(ids)]
    assert all(allowed[:6])
    assert not all(allowed)


def test_bits_are_unpacked_as_a_naive_reading_of_them():
    masks = torch.randint(-(2**31), 2**31 - 1, (3, 4), dtype=torch.int32)
    naive = [[bool((word & 0xFFFFFFFF) >> bit & 1) for word in row for bit in range(32)] for row in masks.tolist()]
    assert unpack(masks, 100).tolist() == [row[:100] for row in naive]
