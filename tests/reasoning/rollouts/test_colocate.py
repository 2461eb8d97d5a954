"""vLLM in the trainer's process on a model that was trained to hear: the same policy, before and after it trains."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from safetensors import safe_open

from data_builders.rows import read_corpus, split_clips
from reasoning.errors import ModelError
from reasoning.models.answer_head import Completions, add_answer_head
from reasoning.models.generating import generate_ids
from reasoning.models.loading import add_adapter, load_model
from reasoning.models.memory import AudioMemory, batch_heard
from reasoning.models.prompter import Prompter, prompt_batch
from reasoning.rollouts.rollouts import Prompt, Sampling
from reasoning.rollouts.weights import Touched

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

GREEDY = Sampling(60, temperature=0.0)
DRAWN = Sampling(60)


@dataclass
class Sides:
    """A trainer and the rollouts beside it, on eight clips of speakers that the model has not heard."""

    loaded: Any
    prompter: Prompter
    memory: AudioMemory
    prompts: list[Prompt]
    rollouts: Any

    def logps(self, prompts, completions):
        """By the trainer's answer head, a completion at a time."""
        return [self.scores(p, c).tolist() for p, c in zip(prompts, completions, strict=True)]

    def scores(self, prompt, completion):
        ids, answer = torch.tensor([prompt.ids]), torch.tensor([list(completion)])
        completions = Completions(answer, torch.ones_like(answer), torch.zeros(1, dtype=torch.long))
        audio = batch_heard([prompt.heard], self.loaded.family)
        return self.loaded.model(
            input_ids=ids, attention_mask=torch.ones_like(ids), **audio, completions=completions, labels=answer,
            answer_head=True,
        ).logps[0]  # fmt: skip

    def greedy(self):
        """Texts of both sides."""
        batch = prompt_batch(self.prompter, [p.ids for p in self.prompts], [p.heard for p in self.prompts])
        ours = generate_ids(self.loaded, batch, max_new_tokens=GREEDY.max_new_tokens, do_sample=False)
        theirs = self.rollouts.sample(self.prompts, 1, [0] * len(self.prompts), GREEDY)
        return ours, [samples[0].ids for samples in theirs]

    def swapped(self):
        """Every prompt with another emotion's tone of the same speaker."""
        others = self.prompts[1:] + self.prompts[:1]
        return [replace(p, ids=o.ids, heard=o.heard) for p, o in zip(self.prompts, others, strict=True)]

    def touched(self):
        return Touched(self.loaded.model, without=self.loaded.family.projector)

    def train(self, steps=4):
        """Teach the adapter and the projector to answer each tone as the next one is answered."""
        wanted = [s[0].ids for s in self.rollouts.sample(self.prompts, 1, [0] * len(self.prompts), GREEDY)]
        weights = [p for p in self.loaded.model.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(weights, lr=5e-3)
        for _ in range(steps):
            pairs = zip(self.prompts, wanted[1:] + wanted[:1], strict=True)
            loss = -torch.stack([self.scores(prompt, answer).mean() for prompt, answer in pairs]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@pytest.fixture(scope="module")
def both(trained_checkpoint):
    from reasoning.rollouts.colocate import Colocate

    corpus = read_corpus(trained_checkpoint.corpus)
    torch.manual_seed(0)
    loaded = add_adapter(load_model(trained_checkpoint.model), r=4, alpha=8, dropout=0.0, train_projector=True)
    prompter, memory = Prompter(loaded, corpus.info.emotions), loaded.memory()
    add_answer_head(loaded.base, prompter.labels)
    clips = split_clips(corpus, 0)["test"][:8]
    paths = [corpus.root / c.audio for c in clips]
    prompts = [
        Prompt(c.id, prompter.prompt_ids(c.transcript, h, "no_think"), c.transcript, "no_think", path, h)
        for c, path, h in zip(clips, paths, memory.hear(paths, [c.id for c in clips]), strict=True)
    ]
    rollouts = Colocate(loaded, dtype="float32", max_num_seqs=64)
    yield Sides(loaded, prompter, memory, prompts, rollouts)
    rollouts.close()


@pytest.fixture
def sides(both):
    """Both sides where the adapter began."""
    weights = [p for p in both.loaded.model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in weights]
    both.rollouts.sync(both.touched())
    yield both
    with torch.no_grad():
        for weight, value in zip(weights, before, strict=True):
            weight.copy_(value)


def widest(a, b):
    return max(abs(x - y) for left, right in zip(a, b, strict=True) for x, y in zip(left, right, strict=True))


@torch.no_grad()
def test_log_probabilities_as_drawn_are_the_trainers_with_true_audio_and_not_with_swapped(sides):
    drawn = [samples[0] for samples in sides.rollouts.sample(sides.prompts, 1, range(8), DRAWN)]
    ids, logps = [s.ids for s in drawn], [s.logps for s in drawn]
    assert widest(logps, sides.logps(sides.prompts, ids)) < 1e-3
    lost = [sum(t) - sum(s) for t, s in zip(logps, sides.logps(sides.swapped(), ids), strict=True)]
    assert sum(lost) / len(lost) > 3, "nats an answer loses when the sound is another tone's"


@torch.no_grad()
def test_given_completions_are_scored_as_the_trainer_scores_them_with_true_and_swapped_audio(sides):
    answers = [s[0].ids for s in sides.rollouts.sample(sides.prompts, 1, range(8), DRAWN)]
    for prompts in (sides.prompts, sides.swapped()):
        assert widest(sides.rollouts.logps(prompts, answers), sides.logps(prompts, answers)) < 1e-4


def test_after_training_a_sync_makes_greedy_texts_those_of_the_trainer_and_other_than_before(sides):
    before, same = sides.greedy()
    assert before == same
    sides.train()
    stale = sides.greedy()[1]
    synced = sides.rollouts.sync(sides.touched())
    ours, theirs = sides.greedy()
    assert ours == theirs
    assert sum(a != b for a, b in zip(ours, before, strict=True)) >= 4
    assert stale != ours, "the language model's part of the training was not yet there"
    assert synced.seconds > 0


def test_a_sync_moves_the_adapted_weights_and_no_others(sides, trained_checkpoint):
    with safe_open(trained_checkpoint.model / "model.safetensors", "pt") as file:
        sizes = {name: file.get_tensor(name).nbytes for name in file.keys()}  # noqa: SIM118
    linear = [n for n in sizes if n.startswith("language_model.model.layers.") and n.endswith("_proj.weight")]
    synced = sides.rollouts.sync(sides.touched())
    assert (synced.tensors, synced.bytes) == (len(linear), sum(sizes[n] for n in linear))
    assert synced.bytes < 0.8 * sum(sizes.values())


@torch.no_grad()
def test_parts_of_a_fused_layer_that_were_not_trained_stay_whole(sides):
    """Only q and v are sent: vLLM keeps them in one layer with k, and with their biases."""
    for name, parameter in sides.loaded.model.named_parameters():
        if "lora_B" in name and ("q_proj" in name or "v_proj" in name):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    touched = sides.touched()
    sent = {name: touched[name] for name in touched if "q_proj" in name or "v_proj" in name}
    answers = [p.ids[-20:] for p in sides.prompts]
    assert widest(sides.rollouts.logps(sides.prompts, answers), sides.logps(sides.prompts, answers)) > 0.05
    assert sides.rollouts.sync(sent).tensors == 4
    assert widest(sides.rollouts.logps(sides.prompts, answers), sides.logps(sides.prompts, answers)) < 1e-4


@torch.no_grad()
def test_a_projector_that_trains_is_heard_at_once_and_no_cache_serves_yesterdays_audio(sides):
    sides.greedy()
    for name, parameter in sides.loaded.model.named_parameters():
        if parameter.requires_grad and "projector" in name:
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    answers = [s[0].ids for s in sides.rollouts.sample(sides.prompts, 1, range(8), GREEDY)]
    assert answers == sides.greedy()[0]
    assert widest(sides.rollouts.logps(sides.prompts, answers), sides.logps(sides.prompts, answers)) < 1e-4


def test_one_prompt_with_its_audio_is_sent_for_all_its_samples_and_sample_j_adds_j_to_the_seed(sides, monkeypatch):
    asked = []
    generate = sides.rollouts.vllm.llm.generate
    monkeypatch.setattr(sides.rollouts.vllm.llm, "generate", lambda p, *a, **k: asked.append(p) or generate(p, *a, **k))
    passes = sides.memory.passes
    seeds = list(range(1000, 9000, 1000))
    groups = sides.rollouts.sample(sides.prompts, 3, seeds, DRAWN)
    assert [len(part) for part in asked] == [8]
    assert sides.memory.passes == passes
    assert [len(group) for group in groups] == [3] * 8
    alone = sides.rollouts.sample(sides.prompts[5:6], 1, [seeds[5] + 2], DRAWN)
    assert alone[0][0].ids == groups[5][2].ids
    again = sides.rollouts.sample(sides.prompts, 3, seeds, DRAWN)
    assert [[s.ids for s in group] for group in again] == [[s.ids for s in group] for group in groups]
    other = sides.rollouts.sample(sides.prompts, 3, [s + 100 for s in seeds], DRAWN)
    assert [[s.ids for s in group] for group in other] != [[s.ids for s in group] for group in groups]


def test_more_prompts_than_one_pass_takes_keep_their_seeds(sides):
    """vLLM then cuts a prompt in two, and would have to take back a draw, which a CPU's generator cannot."""
    passes = sides.rollouts.vllm.llm.llm_engine.vllm_config.scheduler_config.max_num_batched_tokens
    assert 8 * sum(len(p.ids) for p in sides.prompts) > passes
    groups = sides.rollouts.sample(sides.prompts, 8, range(0, 800, 100), DRAWN)
    alone = sides.rollouts.sample(sides.prompts[7:], 1, [703], DRAWN)
    assert alone[0][0].ids == groups[7][3].ids


@torch.no_grad()
def test_modality_tokens_are_never_sampled_by_weights_that_want_nothing_else(sides):
    never = sides.loaded.modality_token_ids()
    head = sides.loaded.base.get_output_embeddings().weight
    eager = torch.zeros_like(head)
    # Of opposite rows one always wins by far, whatever the state is.
    eager[never[0]] = 1e4 * torch.randn(head.shape[1], generator=torch.Generator().manual_seed(3))
    eager[never[1]] = -eager[never[0]]
    sides.rollouts.sync({"language_model.lm_head.weight": eager})
    try:
        banned = sides.rollouts.sample(sides.prompts, 2, range(8), Sampling(20))
        sides.rollouts.vllm.never, kept = [], sides.rollouts.vllm.never
        free = sides.rollouts.sample(sides.prompts, 2, range(8), Sampling(20))
        sides.rollouts.vllm.never = kept
    finally:
        sides.rollouts.sync({"language_model.lm_head.weight": head})
    assert not set(never) & {token for group in banned for s in group for token in s.ids}
    assert {token for group in free for s in group for token in s.ids} <= set(never)


def test_a_prompt_that_does_not_fit_and_a_weight_that_the_checkpoint_lacks_are_refused_by_name(sides):
    with pytest.raises(ModelError, match=rf"\[{sides.prompts[0].row}\] prompt: needs \d+ prompt .* holds 1023"):
        sides.rollouts.sample(sides.prompts[:1], 1, [0], Sampling(1000))
    with pytest.raises(ModelError, match=r"1 weights, model.language_model.x.weight first, are not in"):
        sides.rollouts.sync({"model.language_model.x.weight": torch.zeros(1)})
