"""Labels over a trie against the plain way: each label's line behind its own copy of the row, one forward each."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoProcessor

from data_builders.rows import read_corpus, split_clips
from reasoning.distributions import jsd_bits, normalize_votes
from reasoning.emotions import CREMA_D, EmotionSet
from reasoning.errors import ModelError
from reasoning.inference.engine import Request
from reasoning.inference.transformers_engine import TransformersEngine
from reasoning.models.answer_head import Completions, add_answer_head
from reasoning.models.label_trie import LabelTrie
from reasoning.models.loading import load_model
from reasoning.models.memory import batch_heard
from reasoning.models.prompter import Prompter, prompt_batch
from reasoning.response import ANSWER_PREFIX, ShareGrid
from reasoning.training.collate import IGNORE, AnswerCollator
from reasoning.training.objective import vote_kl_nats

SHARED = EmotionSet(("sad", "sadness", "fear", "fearful", "neutral", "happy"))
"""The small tokenizer begins some of these with the same token, and two of them begin another."""

WORDS = ("sad", "sadness", "anger", "angry", "angst", "happy", "happiness", "fear", "fearful", "disgust", "neutral")
NAMES = st.one_of(st.sampled_from(WORDS), st.text("abs", min_size=1, max_size=5))
SETS = st.lists(NAMES, min_size=2, max_size=7, unique=True).map(lambda names: EmotionSet(tuple(names)))


@pytest.fixture(scope="module")
def small(untrained_checkpoint):
    return AutoProcessor.from_pretrained(untrained_checkpoint).tokenizer


@pytest.fixture(scope="module")
def smollm(seed_folder):
    return AutoProcessor.from_pretrained(seed_folder).tokenizer


def line_tokens(tokenizer, name):
    """Tokens between the colon and the end of the line, by the characters that each covers."""
    text = f"{ANSWER_PREFIX} {name}\nShares: {name} 1.00"
    made = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    span = range(len(ANSWER_PREFIX), text.index("\n") + 1)
    return tuple(
        token for token, (start, end) in zip(made["input_ids"], made["offset_mapping"], strict=True) if start in span
    )


@pytest.mark.parametrize("name", ["small", "smollm"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(emotions=SETS)
def test_labels_are_scored_by_first_tokens_where_these_differ_and_else_up_to_the_line_break(request, name, emotions):
    tokenizer = request.getfixturevalue(name)
    lines = [line_tokens(tokenizer, n) for n in emotions.names]
    trie = LabelTrie.of(tokenizer, emotions)
    if len({line[0] for line in lines}) == len(lines):
        assert trie.paths == tuple(line[:1] for line in lines)
        assert [step.prefix for step in trie.steps] == [()]
        assert trie.steps[0].tokens == tuple(line[0] for line in lines)
    else:
        assert trie.paths == tuple(lines)
        assert [tokenizer.decode(p) for p in trie.paths] == [f" {n}\n" for n in emotions.names]
        # A server is sent text: what a step stands on must come back as the same tokens.
        before = tokenizer.encode(ANSWER_PREFIX, add_special_tokens=False)
        for step in trie.steps:
            text = ANSWER_PREFIX + tokenizer.decode(list(step.prefix))
            assert tokenizer.encode(text, add_special_tokens=False) == [*before, *step.prefix]
    for one, other in itertools.permutations(trie.paths, 2):
        assert other[: len(one)] != one


def test_the_usual_labels_are_single_tokens_of_the_embedded_model(smollm):
    trie = LabelTrie.of(smollm, CREMA_D)
    assert [smollm.decode(path) for path in trie.paths] == [f" {name}" for name in CREMA_D.names]


PATHS = st.lists(st.text("abc", max_size=4), min_size=2, max_size=8, unique=True)


@given(words=PATHS, seed=st.integers(0, 2**32 - 1))
def test_scores_are_the_logs_of_the_products_along_each_label_and_share_out_what_leads_to_any(words, seed):
    """Every string over a, b, c that ends in `!` has a probability; the labels' scores are those of theirs."""
    paths = [tuple(map(ord, f"{word}!")) for word in words]
    weights = torch.rand((5, 128), generator=torch.Generator().manual_seed(seed)).double() + 0.01
    trie = LabelTrie(paths)

    def next_share(prefix, token):
        among = weights[len(prefix), [ord(c) for c in "abc!"]]
        return float(weights[len(prefix), token] / among.sum())

    asked = [[math.log(next_share(step.prefix, token)) for token in step.tokens] for step in trie.steps]
    expected = [math.prod(next_share(path[:i], path[i]) for i in range(len(path))) for path in paths]
    assert [math.exp(score) for score in trie.sums(asked)] == pytest.approx(expected)
    assert sum(expected) <= 1 + 1e-9
    assert len(trie.steps) == len({path[:i] for path in paths for i in range(len(path))})


@pytest.fixture
def ready(trained_checkpoint):
    corpus = read_corpus(trained_checkpoint.corpus)
    rows = [
        {"id": c.id, "audio": str(corpus.root / c.audio), "transcript": "a tone" * (1 + i % 2), "votes": c.votes}
        for i, c in enumerate(corpus.clips[:4])
    ]
    return trained_checkpoint.model, rows


def one_by_one(loaded, prompter, heard, ids):
    """(K,) log-probability of each label's line after the row `ids`, a forward of transformers' own for each."""
    scores = []
    for name in prompter.emotions.names:
        line = line_tokens(prompter.tokenizer, name)
        whole = torch.tensor([[*ids, *line]])
        audio = batch_heard([heard], loaded.family)
        inputs = {"input_ids": whole, "attention_mask": torch.ones_like(whole), **audio}
        logps = loaded.base(**inputs).logits[0].log_softmax(-1)
        scores.append(sum(logps[len(ids) + i - 1, token] for i, token in enumerate(line)))
    return torch.stack(scores)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_written_answers_slot_gives_each_labels_own_forward_with_gradients_and_disturbs_nothing(ready, attention):
    folder, rows = ready
    loaded = load_model(folder, attn_implementation=attention)
    prompter = Prompter(loaded, SHARED)
    assert len(prompter.labels.steps) > 1
    memory = loaded.memory()
    batch = AnswerCollator(prompter, memory, level="no_think", seed=0)(rows)
    weight = loaded.base.get_submodule("model.language_model.layers.0.mlp.up_proj").weight
    weight.requires_grad_(True)
    heard = memory.hear([Path(r["audio"]) for r in rows])
    starts = [ids[:slot].tolist() for ids, slot in zip(batch["input_ids"], batch["slots"], strict=True)]
    expected = torch.stack([one_by_one(loaded, prompter, h, ids) for h, ids in zip(heard, starts, strict=True)])
    votes, slots = batch.pop("votes"), batch.pop("slots")
    add_answer_head(loaded.base, prompter.labels)
    found = loaded.base(**batch, slots=slots, answer_head=True)
    torch.testing.assert_close(found.label_logits, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.label_mass, expected.logsumexp(-1), atol=1e-4, rtol=1e-4)
    gradients = [
        torch.autograd.grad(vote_kl_nats(scores, votes).sum(), weight)[0] for scores in (expected, found.label_logits)
    ]
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-4, rtol=1e-3)
    without = loaded.base(**batch, answer_head=True)
    torch.testing.assert_close(found.logps, without.logps, atol=1e-5, rtol=1e-4)


def test_sampled_answers_on_shared_prompts_give_each_labels_own_forward_with_gradients(ready):
    """As GRPO and DPO ask: left-padded prompts computed once, slots anywhere in the right-padded completions."""
    folder, rows = ready
    loaded = load_model(folder)
    prompter = Prompter(loaded, SHARED)
    heard = loaded.memory().hear([Path(r["audio"]) for r in rows[:2]])
    prompts = [prompter.prompt_ids(r["transcript"], h, "no_think") for r, h in zip(rows[:2], heard, strict=True)]
    texts = ("<answer>Vote: sad\nShares", "<answer>Vote:", "so be it\n<answer>Vote: fearful\nShares: sad 0.10", "hm")
    answers, prompt_of = [prompter.encode(text) for text in texts], [0, 1, 1, 0]
    slots = [prompter.slot_of([*ids, 0]) or 0 for ids in answers]
    assert slots[1] == len(answers[1])
    longest = max(map(len, answers))
    ids = torch.tensor([a + [prompter.pad_id] * (longest - len(a)) for a in answers])
    mask = torch.tensor([[1] * len(a) + [0] * (longest - len(a)) for a in answers])
    weight = loaded.base.get_submodule("model.multi_modal_projector.linear").weight
    weight.requires_grad_(True)
    expected = torch.stack([
        one_by_one(loaded, prompter, heard[i], prompts[i] + answer[:slot])
        for i, answer, slot in zip(prompt_of, answers, slots, strict=True)
    ])  # fmt: skip
    (wanted,) = torch.autograd.grad(expected.sum(), weight)
    add_answer_head(loaded.base, prompter.labels)
    inputs = {**prompt_batch(prompter, prompts, heard), "completions": Completions(ids, mask, torch.tensor(prompt_of))}
    asked = {"labels": ids.masked_fill(mask == 0, IGNORE), "answer_head": True}
    found = loaded.base(**inputs, **asked, slots=torch.tensor(slots))
    (gradient,) = torch.autograd.grad(found.label_logits.sum(), weight)
    torch.testing.assert_close(found.label_logits, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(gradient, wanted, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found.logps, loaded.base(**inputs, **asked).logps, atol=1e-5, rtol=1e-4)


def test_what_the_readout_scores_carries_no_hard_target_and_what_follows_does(ready):
    folder, rows = ready
    loaded = load_model(folder)
    apart = EmotionSet(("sadness", "angriness", "fear", "disgust", "neutral", "happy"))
    for emotions in (SHARED, apart):
        prompter = Prompter(loaded, emotions)
        batch = AnswerCollator(prompter, loaded.memory(), level="no_think", seed=0)(rows)
        for ids, labels, slot in zip(batch["input_ids"], batch["labels"], batch["slots"].tolist(), strict=True):
            (path,) = [p for p in prompter.labels.paths if tuple(ids[slot : slot + len(p)].tolist()) == p]
            assert (labels[slot : slot + len(path)] == IGNORE).all()
            after = slot + len(path)
            assert torch.equal(labels[after : after + 3], ids[after : after + 3])


def test_the_readout_of_labels_that_share_a_token_is_trained_hears_and_fails_when_the_audio_is_swapped(ready):
    folder, _ = ready
    corpus = read_corpus(Path(ready[1][0]["audio"]).parent)
    clips = split_clips(corpus, 0)
    loaded = load_model(folder)
    prompter, memory = Prompter(loaded, SHARED), loaded.memory()
    add_answer_head(loaded.base, prompter.labels)
    collator = AnswerCollator(prompter, memory, level="no_think", seed=0, grid=ShareGrid(10))
    rows = [
        {"id": c.id, "audio": str(corpus.root / c.audio), "transcript": c.transcript, "votes": c.votes}
        for c in clips["train"]
    ]
    weights = [p for name, p in loaded.base.named_parameters() if "audio_tower" not in name]
    for weight in weights:
        weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(weights, lr=2e-3)
    order = torch.Generator().manual_seed(0)
    for step in range(60):
        collator.epoch = step
        batch = collator([rows[i] for i in torch.randperm(len(rows), generator=order)[:12].tolist()])
        votes, tokens = batch.pop("votes"), (batch["labels"] != IGNORE).sum()
        out = loaded.base(**batch, answer_head=True)
        loss = -(out.logps.sum() + out.label_mass.sum()) / tokens + vote_kl_nats(out.label_logits, votes).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    engine = TransformersEngine(loaded, SHARED, batch_size=5)
    unseen = clips["test"]
    true = [Request(c.id, corpus.root / c.audio, c.transcript) for c in unseen]
    swapped = [Request(a.id, b.audio, a.transcript) for a, b in zip(true, true[1:] + true[:1], strict=True)]
    of_listeners = normalize_votes([c.votes for c in unseen])
    distance = [
        jsd_bits(of_listeners, [s.probabilities for s in engine.score_labels(r)]).mean() for r in (true, swapped)
    ]
    assert distance[0] < 0.15
    assert distance[1] > distance[0] + 0.25


def test_an_attention_that_takes_no_mask_is_refused_with_the_cure(ready):
    loaded = load_model(ready[0])
    loaded.base.config.get_text_config()._attn_implementation = "flash_attention_2"
    add_answer_head(loaded.base, LabelTrie.of(loaded.tokenizer, CREMA_D))
    with pytest.raises(ModelError, match=r"attn_implementation: flash_attention_2 .* choose sdpa, or rename"):
        add_answer_head(loaded.base, LabelTrie.of(loaded.tokenizer, SHARED))
