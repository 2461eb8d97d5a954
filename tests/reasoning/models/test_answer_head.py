"""The answer head against the model's own full logits, with and without shared prompts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from data_builders.rows import read_corpus
from reasoning.models import answer_head
from reasoning.models.answer_head import Completions, add_answer_head
from reasoning.models.loading import load_model
from reasoning.models.memory import batch_heard
from reasoning.models.prompter import Prompter, prompt_batch
from reasoning.training.collate import AnswerCollator


@pytest.fixture
def ready(trained_family):
    corpus = read_corpus(trained_family.corpus)
    loaded = load_model(trained_family.model)
    prompter = Prompter(loaded, corpus.info.emotions)
    rows = [
        {"id": c.id, "audio": str(corpus.root / c.audio), "transcript": c.transcript, "votes": c.votes}
        for c in corpus.clips[:4]
    ]
    memory = loaded.memory()
    batch = AnswerCollator(prompter, memory, level="no_think", seed=1)(rows)
    batch.pop("votes")
    return loaded, prompter, batch, rows, memory


def naive(loaded, batch, temperature=1.0):
    """Log-probabilities, entropy and labels' logits from the model's full logits."""
    inputs = {k: v for k, v in batch.items() if k not in ("labels", "slots")}
    logits = loaded.base(**inputs).logits
    logs = torch.log_softmax(logits[:, :-1] / temperature, -1)
    labels = batch["labels"][:, 1:]
    chosen = logs.gather(-1, labels.clamp(min=0)[..., None])[..., 0] * (labels != -100)
    entropy = -(logs.exp() * logs).sum(-1) * (labels != -100)
    return logits, chosen, entropy


@pytest.mark.parametrize("chunk", [4096, 7])
def test_log_probabilities_entropy_and_gradients_equal_those_of_the_full_logits(ready, monkeypatch, chunk):
    loaded, prompter, batch, *_ = ready
    monkeypatch.setattr(answer_head, "CHUNK", chunk)
    weight = loaded.base.get_submodule("model.language_model.layers.0.mlp.up_proj").weight
    weight.requires_grad_(True)
    logits, chosen, entropy = naive(loaded, batch, 0.7)
    (expected,) = torch.autograd.grad(chosen.sum(), weight)
    add_answer_head(loaded.base, prompter.labels)
    out = loaded.base(**batch, answer_head=True, temperature=0.7, entropy=True)
    (gradient,) = torch.autograd.grad(out.logps.sum(), weight)
    torch.testing.assert_close(out.logps[:, 1:], chosen, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(out.entropy[:, 1:], entropy, atol=1e-5, rtol=1e-4)
    mean = logits[:, :-1].mean(-1) / 0.7 * (batch["labels"][:, 1:] != -100)
    torch.testing.assert_close(out.mean_logits[:, 1:], mean, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=1e-3)
    assert not out.logps[:, 0].any()


def test_label_logits_are_those_that_predict_the_votes_token_and_mass_is_their_share(ready):
    loaded, prompter, batch, *_ = ready
    logits, *_ = naive(loaded, batch)
    add_answer_head(loaded.base, prompter.labels)
    out = loaded.base(**batch, answer_head=True)
    for row, slot in enumerate(batch["slots"].tolist()):
        at = logits[row, slot - 1]
        torch.testing.assert_close(
            out.label_logits[row], at[list(prompter.labels.steps[0].tokens)], atol=1e-5, rtol=1e-4
        )
        share = torch.softmax(at, -1)[list(prompter.labels.steps[0].tokens)].sum().log()
        torch.testing.assert_close(out.label_mass[row], share, atol=1e-5, rtol=1e-4)


def test_shared_prompts_give_the_same_log_probabilities_and_gradients_as_whole_rows(ready):
    """Two completions a prompt, prompts of unequal length: one prompt pass instead of two, the same numbers."""
    loaded, prompter, _, rows, memory = ready
    heard = memory.hear([Path(r["audio"]) for r in rows[:2]])
    prompts = [prompter.prompt_ids("a tone" * (i + 1), h, "no_think") for i, h in enumerate(heard)]
    answers = [
        prompter.encode(t) for t in ("<answer>Vote: sad", "<answer>Vote: fear\nShares", "<answer>", "no idea, sad")
    ]
    prompt_of = [0, 1, 1, 0]
    longest = max(map(len, answers))
    ids = torch.tensor([a + [prompter.pad_id] * (longest - len(a)) for a in answers])
    mask = torch.tensor([[1] * len(a) + [0] * (longest - len(a)) for a in answers])
    labels = ids.masked_fill(mask == 0, -100)
    slots = torch.tensor([3, 3, 0, 2])
    weight = next(loaded.projector.parameters())
    weight.requires_grad_(True)
    add_answer_head(loaded.base, prompter.labels)

    shared = loaded.base(
        **prompt_batch(prompter, prompts, heard), completions=Completions(ids, mask, torch.tensor(prompt_of)),
        labels=labels, slots=slots, answer_head=True,
    )  # fmt: skip
    (shared_gradient,) = torch.autograd.grad(shared.logps.sum() + shared.label_logits.sum(), weight)

    whole = prompt_batch(prompter, [prompts[i] for i in prompt_of], [heard[i] for i in prompt_of])
    length = whole["input_ids"].shape[1]
    inputs = {
        "input_ids": torch.cat([whole["input_ids"], ids], 1),
        "attention_mask": torch.cat([whole["attention_mask"], mask], 1),
        **batch_heard([heard[i] for i in prompt_of], loaded.family),
    }
    skipped = torch.full((4, length), -100)
    positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    plain = loaded.base(
        **inputs, position_ids=positions, labels=torch.cat([skipped, labels], 1), slots=slots + length, answer_head=True
    )
    (plain_gradient,) = torch.autograd.grad(plain.logps.sum() + plain.label_logits.sum(), weight)
    torch.testing.assert_close(shared.logps, plain.logps[:, length:], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(shared.label_logits, plain.label_logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(shared_gradient, plain_gradient, atol=1e-4, rtol=1e-3)


def test_without_the_keyword_the_forward_is_the_models_own_and_generate_still_passes_positions(ready):
    import inspect

    loaded, prompter, batch, *_ = ready
    inputs = {k: v for k, v in batch.items() if k not in ("labels", "slots")}
    before = loaded.base(**inputs).logits
    add_answer_head(loaded.base, prompter.labels)
    assert torch.equal(loaded.base(**inputs).logits, before)
    assert "position_ids" in inspect.signature(loaded.base.forward).parameters
