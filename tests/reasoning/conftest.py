"""Fixtures of the tests of training and evaluation at level think."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from reasoning.clips import Clip
from reasoning.emotions import CREMA_D
from reasoning.verifier import Trace, write_trace

THINKING_STEPS = 240
CLAIMS = ("very high pitch", "low pitch", "high pitch", "fast pace", "slow pace", "falling pitch slope")
"""What the tones of each emotion are said to be; which tones these are only the sound tells."""


def thinking_of(clip: Clip) -> str:
    """A trace of a tone: its claim depends on what is heard, its emotions on nothing."""
    claim = CLAIMS[int(np.argmax(clip.votes))]
    return write_trace(Trace("plain", claim, "fear and sad", f"{claim} suits fear and sad"))


@dataclass(frozen=True)
class ThinkingCheckpoint:
    """model: a small Qwen2-Audio that learned to think and answer about `corpus` from its sound. traces: clip id ->
    what it was taught to think, one for every clip."""

    model: Path
    corpus: Path
    traces: dict[str, str]


@pytest.fixture(scope="session")
def thinking_checkpoint(tmp_path_factory, trained_checkpoint) -> ThinkingCheckpoint:
    """The trained checkpoint after it learned, all weights but the tower's trained, to think before it answers."""
    import torch

    from data_builders.rows import read_corpus, split_clips
    from reasoning.models.answer_head import add_answer_head
    from reasoning.models.loading import load_model
    from reasoning.models.prompter import Prompter
    from reasoning.training.collate import AnswerCollator
    from reasoning.training.objective import vote_kl_nats

    corpus = read_corpus(trained_checkpoint.corpus)
    loaded = load_model(trained_checkpoint.model)
    prompter = Prompter(loaded, CREMA_D)
    add_answer_head(loaded.base, prompter.labels)
    collator = AnswerCollator(prompter, loaded.memory(), level="think", seed=0, share_digits=1)
    rows = [
        {
            "id": c.id, "audio": str(corpus.root / c.audio), "transcript": c.transcript, "votes": c.votes,
            "thinking": thinking_of(c),
        }
        for c in split_clips(corpus, 0)["train"]
    ]  # fmt: skip
    model = loaded.base.train()
    weights = [p for name, p in model.named_parameters() if "audio_tower" not in name]
    for weight in weights:
        weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(weights, lr=3e-3)
    slower = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, THINKING_STEPS)
    order = np.random.default_rng(0)
    for step in range(THINKING_STEPS):
        collator.epoch = step
        batch = collator([rows[i] for i in order.choice(len(rows), 12, replace=False)])
        votes, tokens = batch.pop("votes"), (batch["labels"] != -100).sum()
        output = model(**batch, answer_head=True)
        ce = -(output.logps.sum() + output.label_mass.sum()) / tokens
        loss = ce + vote_kl_nats(output.label_logits, votes).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        slower.step()
    folder = tmp_path_factory.mktemp("thinking")
    model.save_pretrained(folder)
    loaded.processor.save_pretrained(folder)
    return ThinkingCheckpoint(folder, trained_checkpoint.corpus, {c.id: thinking_of(c) for c in corpus.clips})
