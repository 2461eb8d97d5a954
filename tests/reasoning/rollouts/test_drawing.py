"""Who is asked for GRPO's completions, with which seeds, and when the weights are sent."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from data_builders.rows import read_corpus, split_clips
from reasoning.models.loading import load_model
from reasoning.models.prompter import Prompter
from reasoning.rollouts.drawing import FromRollouts, once_each
from reasoning.rollouts.rollouts import Prompt, Sampling, Synced
from reasoning.rollouts.transformers import TransformersRollouts


class Recording(TransformersRollouts):
    """Real rollouts that remember what they were asked."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.asked: list[tuple[str, int, int]] = []
        self.syncs = 0

    def sample(self, prompts, n, seeds, sampling):
        self.asked += [(p.row, n, seed) for p, seed in zip(prompts, seeds, strict=True)]
        return super().sample(prompts, n, seeds, sampling)

    def sync(self, tensors):
        self.syncs += 1
        return Synced(len(tensors), 0, 0.0, None)


@pytest.fixture(scope="module")
def questions(untrained_checkpoint, tone_corpus):
    corpus = read_corpus(tone_corpus)
    loaded = load_model(untrained_checkpoint)
    prompter = Prompter(loaded, corpus.info.emotions)
    clips = split_clips(corpus, 0)["test"][:2]
    paths = [corpus.root / c.audio for c in clips]
    prompts = [
        Prompt(c.id, prompter.prompt_ids(c.transcript, h, "no_think"), c.transcript, "no_think", p, h)
        for c, p, h in zip(clips, paths, loaded.memory().hear(paths), strict=True)
    ]
    return loaded, prompter, prompts


def drawing(questions, rank=0, seed=7, group=4):
    loaded, prompter, _ = questions
    rollouts = Recording(loaded, prompter)
    ranks: Any = SimpleNamespace(process_index=rank, wait_for_everyone=lambda: None)
    tensors = {"w": torch.zeros(1)}
    return FromRollouts(rollouts, tensors, Sampling(5), ranks, seed=seed, group=group), rollouts


def test_repetitions_are_asked_for_as_samples_of_one_prompt(questions):
    a, b = questions[2]
    assert once_each([a, a, b, b]) == ([a, b], 2)
    assert once_each([a, a, a, b]) == ([a, a, a, b], 1)


def test_the_seed_of_a_sample_is_the_same_on_any_number_of_ranks(questions):
    """Four samples of each of two clips: on one rank, on two with half of each, on three where groups are cut."""
    a, b = questions[2]
    whole, asked = drawing(questions)
    ids, logps = whole.draw([a] * 4 + [b] * 4, step=3)
    assert [(row, n) for row, n, _ in asked.asked] == [(a.row, 4), (b.row, 4)]
    assert [len(x) for x in ids] == [len(x) for x in logps or []]
    seeds = {(row, j): seed + j for row, n, seed in asked.asked for j in range(n)}
    assert len(set(seeds.values())) == 8

    rows = [a] * 4 + [b] * 4
    for size in (2, 4):
        again = {}
        for rank in range(8 // size):
            part, recorded = drawing(questions, rank)
            part.draw(rows[rank * size : (rank + 1) * size], step=3)
            at = rank * size
            for row, n, seed in recorded.asked:
                again |= {(row, (at + j) % 4): seed + j for j in range(n)}
                at += n
        assert again == seeds


def test_seeds_change_with_run_step_clip_and_with_a_second_rollout_in_a_step(questions):
    a, b = questions[2]
    seen = []
    for seed, steps in ((7, (0, 0, 1)), (8, (0,))):
        source, recorded = drawing(questions, seed=seed, group=1)
        for step in steps:
            source.draw([a, b], step)
        seen += [s for _, _, s in recorded.asked]
    assert len(set(seen)) == len(seen) == 8
    resumed, recorded = drawing(questions, group=1)
    resumed.draw([a, b], 1)
    assert [s for _, _, s in recorded.asked] == seen[4:6], "a resumed run asks as the one that it continues"


def test_weights_are_handed_over_when_the_step_has_changed(questions):
    prompt = questions[2][0]
    source, recorded = drawing(questions, group=1)
    sent = []
    for step in (0, 0, 1, 1, 2):
        source.draw([prompt], step)
        sent.append(source.synced is not None)
    assert (sent, recorded.syncs) == ([True, False, True, False, True], 3)


def test_an_accelerator_has_what_the_ranks_stand_in_for():
    accelerator = Accelerator(cpu=True)
    assert accelerator.process_index == 0
    accelerator.wait_for_everyone()
