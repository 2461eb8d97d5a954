"""The parity gate on a model that was trained to hear: a sound engine passes, a broken one fails in its broken part.

The engines are transformers' generate, in the trainer's own model and on a copy that knows only what it was sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from data_builders.rows import read_corpus, split_clips
from reasoning.errors import ConfigError, ModelError, RolloutParityError
from reasoning.models.answer_head import add_answer_head
from reasoning.models.loading import Loaded, add_adapter, load_model
from reasoning.models.memory import Heard
from reasoning.models.prompter import Prompter
from reasoning.rollouts.parity import (
    LEAST_HEARD,
    LIMITS,
    Limits,
    Received,
    change_part,
    check_parity,
    gap_part,
    hearing_part,
    swaps,
)
from reasoning.rollouts.policy import Case, Policy
from reasoning.rollouts.rollouts import Prompt, Sampling, Synced
from reasoning.rollouts.transformers import TransformersRollouts
from reasoning.rollouts.weights import Touched, hub_name

SAMPLING = Sampling(max_new_tokens=60)
PARTS = [
    "prompt token ids",
    "audio features",
    "log-probabilities, own audio",
    "log-probabilities, swapped audio",
    "log-probabilities as drawn, T 1",
    "what the audio is worth",
    "a changed adapter, and back",
]
IDS, AUDIO, OWN, SWAPPED, DRAWN, WORTH, CHANGED = PARTS


@dataclass(frozen=True)
class Side:
    """The trainer's side on the trained checkpoint, with an adapter that training could move."""

    policy: Policy
    prompter: Prompter
    cases: list[Case]
    trained: Any


def rows_of(corpus) -> list[dict[str, Any]]:
    return [
        {"id": c.id, "audio": str(corpus.root / c.audio), "transcript": c.transcript, "votes": list(c.votes)}
        for c in split_clips(corpus, 0)["test"]
    ]


@pytest.fixture(scope="module")
def side(trained_checkpoint) -> Side:
    corpus = read_corpus(trained_checkpoint.corpus)
    torch.manual_seed(0)
    loaded = add_adapter(load_model(trained_checkpoint.model), r=2, alpha=4, dropout=0.0, train_projector=True)
    with torch.no_grad():
        for name, weight in loaded.model.named_parameters():
            if ".lora_B." in name:
                weight.normal_(std=0.02)
    prompter = Prompter(loaded, corpus.info.emotions)
    add_answer_head(loaded.base, prompter.labels)
    policy = Policy(loaded, prompter, loaded.memory(), "no_think")
    rows = rows_of(corpus)
    return Side(policy, prompter, policy.cases(rows, swaps(rows)), trained_checkpoint)


class Copy(TransformersRollouts):
    """generate() on another copy of the checkpoint: it knows only the weights that it was sent."""

    def __init__(self, side: Side) -> None:
        super().__init__(load_model(side.trained.model), side.prompter)
        self.names = {hub_name(self.loaded.base, name): name for name, _ in self.loaded.base.named_parameters()}

    def sync(self, tensors: Mapping[str, torch.Tensor]) -> Synced:
        with torch.no_grad():
            for name, tensor in tensors.items():
                self.loaded.base.get_parameter(self.names[name]).copy_(tensor)
        return Synced(len(tensors), 0, 0.0, None)


class Altered(Copy):
    """A copy that works on another prompt than it was given."""

    def alter(self, prompt: Prompt) -> Prompt:
        raise NotImplementedError

    def sample(self, prompts, n, seeds, sampling):
        return super().sample([self.alter(p) for p in prompts], n, seeds, sampling)

    def logps(self, prompts, completions):
        return super().logps([self.alter(p) for p in prompts], completions)

    def received(self, prompts: Sequence[Prompt]) -> list[Received]:
        return super().received([self.alter(p) for p in prompts])


class OnePlaceholderLess(Altered):
    def alter(self, prompt: Prompt) -> Prompt:
        placeholder = self.prompter.tokenizer.convert_tokens_to_ids("<|AUDIO|>")
        at = prompt.ids.index(placeholder)
        assert prompt.heard is not None
        frames = next(
            f for f in range(prompt.heard.frames, 0, -1)
            if self.prompter.family.audio_tokens(f) == len(prompt.heard.features) - 1
        )  # fmt: skip
        return replace(
            prompt, ids=prompt.ids[:at] + prompt.ids[at + 1 :], heard=Heard(prompt.heard.features[:-1], frames)
        )


class Deaf(Altered):
    def alter(self, prompt: Prompt) -> Prompt:
        assert prompt.heard is not None
        return replace(prompt, heard=replace(prompt.heard, features=torch.zeros_like(prompt.heard.features)))


class Louder(Altered):
    """One hundredth louder: too little for any ear."""

    def alter(self, prompt: Prompt) -> Prompt:
        assert prompt.heard is not None
        return replace(prompt, heard=replace(prompt.heard, features=prompt.heard.features * 1.01))


class SilentAboutIt(Deaf):
    """A deaf engine that does not say what it received, as a server does not."""

    received = None  # type: ignore[assignment]


class DeafToSync(Copy):
    """Holds the adapter of its start for ever."""

    synced = False

    def sync(self, tensors):
        if not self.synced:
            self.synced = True
            return super().sync(tensors)
        return Synced(0, 0, 0.0, None)


class SyncsAPart(Copy):
    """Takes every tensor at first, and later all but the last layer's."""

    synced = False

    def sync(self, tensors):
        part = {name: t for name, t in tensors.items() if not self.synced or ".layers.1." not in name}
        self.synced = True
        return super().sync(part)


class KeepsTheChange(Copy):
    """Takes the first two weights that it is sent and not the third."""

    times = 0

    def sync(self, tensors):
        self.times += 1
        return super().sync(tensors) if self.times < 3 else Synced(0, 0, 0.0, None)


class BoastsOfItsDraws(TransformersRollouts):
    """Reports log-probabilities at temperature 1 of what it drew at another one, as vLLM does unless told."""

    def sample(self, prompts, n, seeds, sampling):
        drawn = super().sample(prompts, n, seeds, sampling)
        return [
            [replace(s, logps=self.logps([prompt], [s.ids])[0]) for s in samples]
            for prompt, samples in zip(prompts, drawn, strict=True)
        ]


class Server(Deaf):
    """Hears for itself, wrongly, and refuses other prompts by its own check."""

    hears = True
    received = None  # type: ignore[assignment]


class Refuses(Copy):
    """Holds every request's prompt against ours by itself, as our vLLM engines do."""

    received = None  # type: ignore[assignment]

    def sample(self, prompts, n, seeds, sampling):
        raise ModelError("vLLM made 40 prompt tokens of its 41", row=prompts[0].row, field="prompt", cure="pin vLLM")


def check(
    side: Side, engine: Any, sampling: Sampling = SAMPLING, trained: bool = True, cases: list[Case] | None = None
):
    model: Any = side.policy.loaded.model
    return check_parity(
        side.policy, engine, cases or side.cases, sampling, sync=lambda: engine.sync(Touched(model)), trained=trained
    )


def verdicts(found) -> dict[str, bool | None]:
    return {part.name: part.passed for part in found.parts}


def own(side: Side) -> TransformersRollouts:
    return TransformersRollouts(side.policy.loaded, side.prompter)


@pytest.mark.parametrize("engine", [own, Copy])
def test_a_sound_engine_passes_every_part_by_far(side, engine):
    found = check(side, engine(side))
    assert verdicts(found) == dict.fromkeys(PARTS, True), found.table()
    found.require()
    figures = found.figures()
    assert figures["parity/audio_gap"] < 1e-6
    for audio in ("own", "swapped"):
        assert figures[f"parity/log_probabilities_{audio}_audio_mean"] < 1e-4
        assert figures[f"parity/log_probabilities_{audio}_audio_p99"] < 1e-3
    assert figures["parity/hearing_trainer"] == pytest.approx(figures["parity/hearing_rollouts"], abs=1e-3)
    assert figures["parity/hearing_trainer"] > 3
    assert found.completions == 8
    assert all(abs(t.trainer - t.rollouts) < 1e-3 for t in found.worst)


def test_the_answer_heads_log_probabilities_are_those_of_whole_rows_in_transformers_own_forward(side):
    """The trainer's side against transformers' own forward and softmax on plain inputs, right to the last token."""
    case = side.cases[0].true
    base: Any = side.policy.loaded.base
    answers = [side.prompter.encode("<answer>Vote: sad"), side.prompter.encode("Vote")]
    (long, short) = side.policy.logps([case, case], answers)
    for ids, got in ((answers[0], long), (answers[1], short)):
        whole = torch.tensor([case.ids + ids])
        with torch.no_grad():
            logits = base(
                input_ids=whole,
                attention_mask=torch.ones_like(whole),
                input_features=case.heard.features[None],
                feature_attention_mask=torch.ones(1, case.heard.frames, dtype=torch.long),
            ).logits[0]
        table = logits.double().log_softmax(-1)
        expected = [table[len(case.ids) - 1 + i, token].item() for i, token in enumerate(ids)]
        np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("engine", "broken"),
    [
        (OnePlaceholderLess, IDS),
        (Deaf, AUDIO),
        (Louder, AUDIO),
        (SilentAboutIt, OWN),
        (DeafToSync, CHANGED),
        (SyncsAPart, CHANGED),
        (KeepsTheChange, CHANGED),
    ],
)
def test_a_broken_engine_is_refused_for_the_part_that_is_broken(side, engine, broken):
    found = check(side, engine(side))
    assert verdicts(found)[broken] is False, found.table()
    with pytest.raises(RolloutParityError, match=r"transformers and the trainer differ.*To mend: ") as error:
        found.require()
    assert broken in str(error.value)


def test_a_deaf_engine_fails_on_both_sounds_and_on_what_the_audio_is_worth(side):
    found = check(side, SilentAboutIt(side))
    judged = verdicts(found)
    assert {judged[name] for name in (OWN, SWAPPED, DRAWN, WORTH)} == {False}
    assert judged[IDS] is judged[AUDIO] is None, "it does not say what it received"
    assert found.figures()["parity/hearing_rollouts"] < LEAST_HEARD


def test_what_a_server_heard_is_judged_by_its_log_probabilities(side):
    judged = verdicts(check(side, Server(side)))
    assert judged[IDS] is True
    assert judged[AUDIO] is None
    assert judged[OWN] is False


def test_an_engine_that_ignores_syncs_gives_itself_away_by_the_changed_adapter_alone(side):
    found = check(side, DeafToSync(side))
    assert [name for name, passed in verdicts(found).items() if passed is False] == [CHANGED]
    figures = found.figures()
    assert figures["parity/change_gap"] == pytest.approx(figures["parity/change_trainer"], rel=1e-3), "it did not move"


def test_another_adapter_on_the_rollouts_side_is_refused_with_its_worst_tokens(side):
    engine = Copy(side)
    torch.manual_seed(1)
    other = add_adapter(load_model(side.trained.model), r=2, alpha=4, dropout=0.0, train_projector=False)
    with torch.no_grad():
        for name, weight in other.model.named_parameters():
            if ".lora_B." in name:
                weight.normal_(std=0.05)
    theirs: Any = other.model
    found = check_parity(
        side.policy, engine, side.cases, SAMPLING, sync=lambda: engine.sync(Touched(theirs)), trained=True
    )
    assert verdicts(found)[OWN] is False
    worst = found.worst[0]
    assert abs(worst.trainer - worst.rollouts) >= max(abs(t.trainer - t.rollouts) for t in found.worst)
    assert worst.row in {case.true.row for case in side.cases}
    table = found.table()
    assert f"{worst.trainer:.4f}" in table
    assert repr(worst.token) in table
    assert "DIFFERS" in table


def test_what_is_drawn_is_compared_at_the_training_temperature(side):
    hot = Sampling(max_new_tokens=60, temperature=1.5)
    sound, boasting = check(side, own(side), hot), check(side, BoastsOfItsDraws(side.policy.loaded, side.prompter), hot)
    name = "log-probabilities as drawn, T 1.5"
    assert verdicts(sound)[name] is True
    assert [n for n, passed in verdicts(boasting).items() if passed is False] == [name]


def test_sampling_that_cuts_the_distribution_is_not_judged_as_drawn(side):
    found = check(side, own(side), Sampling(max_new_tokens=20, top_p=0.9))
    assert verdicts(found)[DRAWN] is None
    assert found.passed


def test_a_pair_that_is_deaf_alike_passes_only_before_anything_was_trained(side):
    """Both sides get silence in place of sound: they agree on every token."""

    def silent(prompt):
        tokens = side.cases[0].true
        heard = Heard(torch.zeros_like(tokens.heard.features), tokens.heard.frames)
        return replace(prompt, ids=tokens.ids, heard=heard)

    cases = [Case(silent(case.true), silent(case.swapped)) for case in side.cases]
    taught, fresh = (check(side, own(side), trained=t, cases=cases) for t in (True, False))
    assert verdicts(taught)[OWN] is verdicts(fresh)[OWN] is True
    assert verdicts(taught)[WORTH] is False
    assert verdicts(fresh)[WORTH] is None
    assert "cannot tell" in fresh.table()
    fresh.require()
    with pytest.raises(RolloutParityError, match=r"what the audio is worth.*equivox sft"):
        taught.require()


def test_an_engine_that_refuses_a_prompt_itself_is_a_finding_with_its_own_words(side):
    found = check(side, Refuses(side))
    with pytest.raises(RolloutParityError, match=r"prompt token ids: .*40 prompt tokens of its 41.*pin vLLM"):
        found.require()


def test_weights_and_random_state_are_afterwards_what_they_were(side):
    before = {name: p.detach().clone() for name, p in side.policy.loaded.model.named_parameters()}
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    check(side, own(side))
    assert torch.equal(torch.rand(3), expected)
    for name, p in side.policy.loaded.model.named_parameters():
        assert torch.equal(p, before[name])


def test_a_fresh_adapter_is_changed_by_its_share_of_the_weights_it_is_added_to(trained_checkpoint):
    torch.manual_seed(0)
    loaded: Loaded = add_adapter(load_model(trained_checkpoint.model), r=4, alpha=4, dropout=0.0, train_projector=False)
    policy = Policy.__new__(Policy)
    policy.loaded = loaded
    layer: Any = loaded.base.get_submodule("model.language_model.layers.0.mlp.down_proj")
    with policy.changed(0):
        delta = layer.get_delta_weight("default")
        assert float((delta.norm() / layer.get_base_layer().weight.norm()).detach()) == pytest.approx(0.2, rel=0.15)
    assert not layer.lora_B["default"].weight.any()


def test_differences_are_averaged_and_their_percentile_taken_over_tokens():
    ours = [[-1.0, -2.0], [-0.5]]
    theirs = [[-1.25, -2.0], [-0.5]]
    part = gap_part("log-probabilities, own audio", ours, theirs, Limits(0.1, 0.3, 0, 0, 0))
    assert part.figures["log_probabilities_own_audio_mean"] == pytest.approx(0.25 / 3)
    assert part.figures["log_probabilities_own_audio_p99"] == pytest.approx(0.245)
    assert part.passed is True
    assert gap_part("x", ours, theirs, Limits(0.08, 0.3, 0, 0, 0)).passed is False
    assert gap_part("x", ours, theirs, Limits(0.1, 0.2, 0, 0, 0)).passed is False


def test_log_probabilities_that_are_no_numbers_never_pass():
    assert gap_part("x", [[-1.0]], [[float("nan")]], LIMITS["float32"]).passed is False
    assert gap_part("x", [[-1.0]], [[float("-inf")]], LIMITS["float32"]).passed is False
    nan = [[float("nan")]]
    assert change_part(([[-1.0]], [[-1.0]]), ([[-2.0]], nan), [[-1.0]], LIMITS["float32"]).passed is False
    assert hearing_part(([[-1.0]], [[-9.0]]), ([[-1.0]], nan), LIMITS["float32"], trained=True).passed is False


def test_a_change_too_small_to_tell_is_called_so():
    before, noisy, moved, far = [[-1.0, -2.0]], [[-1.005, -2.005]], [[-1.01, -2.01]], [[-3.0, -2.5]]
    limits = LIMITS["float32"]
    assert change_part((before, noisy), (moved, moved), noisy, limits).passed is None
    assert change_part((before, noisy), (far, far), noisy, limits).passed is True
    assert change_part((before, before), (moved, moved), before, limits).passed is True
    assert change_part((before, before), (moved, before), before, limits).passed is False
    assert change_part((before, before), (before, before), before, limits).passed is None
    assert change_part((before, before), (far, far), before, limits).passed is True
    assert change_part((before, before), (far, before), before, limits).passed is False
    assert change_part((before, before), (far, far), far, limits).passed is False


def test_swaps_take_the_longest_clip_and_partners_of_other_votes_and_the_same_words():
    def row(i, transcript, votes, seconds):
        return {"id": str(i), "transcript": transcript, "votes": votes, "duration_s": seconds}

    rows = [
        row(0, "a", [9, 0, 0], 1.0), row(1, "a", [0, 9, 0], 1.0), row(2, "b", [9, 0, 0], 1.0),
        row(3, "b", [8, 1, 0], 4.0), row(4, "b", [0, 5, 4], 1.0), row(5, "a", [8, 0, 1], 1.0),
    ]  # fmt: skip
    pairs = dict(swaps(rows, 3))
    assert list(pairs) == [3, 0, 2]
    assert pairs == {3: 4, 0: 1, 2: 4}


def test_one_clip_has_nobody_to_swap_with():
    with pytest.raises(ConfigError, match="one clip"):
        swaps([{"id": "a", "transcript": "t", "votes": [1, 0]}])


class Broken:
    """An engine of which one thing is broken: the prompts it works on, or the syncs after the first `takes`."""

    def __init__(self, engine: Any, alter=lambda prompt: prompt, takes: int = 1000) -> None:
        self.engine, self.alter, self.takes = engine, alter, takes
        self.name, self.dtype = engine.name, engine.dtype

    def sample(self, prompts, n, seeds, sampling):
        return self.engine.sample([self.alter(p) for p in prompts], n, seeds, sampling)

    def logps(self, prompts, completions):
        return self.engine.logps([self.alter(p) for p in prompts], completions)

    def received(self, prompts):
        return self.engine.received([self.alter(p) for p in prompts])

    def sync(self, tensors):
        self.takes -= 1
        return self.engine.sync(tensors) if self.takes >= 0 else Synced(0, 0, 0.0, None)


@pytest.fixture(scope="module")
def colocated(side):
    from reasoning.rollouts.colocate import Colocate

    engine = Colocate(side.policy.loaded, dtype="float32", max_num_seqs=8)
    yield engine
    engine.close()


@pytest.mark.vllm
@pytest.mark.slow
class TestColocatedVllm:
    def check(self, side, engine, sampling: Sampling = SAMPLING):
        tensors = Touched(side.policy.loaded.model, without=side.policy.loaded.family.projector)
        return check_parity(side.policy, engine, side.cases, sampling, sync=lambda: engine.sync(tensors), trained=True)

    def test_it_passes_every_part_by_far(self, side, colocated):
        found = self.check(side, colocated)
        assert verdicts(found) == dict.fromkeys(PARTS, True), found.table()
        figures = found.figures()
        for audio in ("own", "swapped"):
            assert figures[f"parity/log_probabilities_{audio}_audio_mean"] < 1e-3
        assert figures["parity/hearing_trainer"] == pytest.approx(figures["parity/hearing_rollouts"], rel=0.01)

    def test_it_draws_from_what_it_reports_at_another_temperature(self, side, colocated):
        found = self.check(side, colocated, Sampling(max_new_tokens=60, temperature=1.5))
        assert verdicts(found)["log-probabilities as drawn, T 1.5"] is True, found.table()

    def test_without_its_audio_it_is_refused(self, side, colocated):
        def silent(prompt):
            return replace(prompt, heard=replace(prompt.heard, features=torch.zeros_like(prompt.heard.features)))

        judged = verdicts(self.check(side, Broken(colocated, silent)))
        assert {judged[name] for name in (AUDIO, OWN, SWAPPED, WORTH)} == {False}

    def test_without_its_syncs_it_is_refused_for_the_changed_adapter(self, side, colocated):
        judged = verdicts(self.check(side, Broken(colocated, takes=1)))
        assert [name for name, passed in judged.items() if passed is False] == [CHANGED]

    def test_in_bfloat16_it_passes_the_wider_limits_and_a_lost_sync_still_shows(self, side):
        from reasoning.rollouts.colocate import Colocate

        engine = Colocate(side.policy.loaded, dtype="bfloat16", max_num_seqs=8)
        try:
            sound, lost = self.check(side, engine), self.check(side, Broken(engine, takes=1))
        finally:
            engine.close()
        assert sound.dtype == lost.dtype == "bfloat16"
        assert verdicts(sound) == dict.fromkeys(PARTS, True), sound.table()
        assert sound.figures()["parity/log_probabilities_swapped_audio_mean"] > 1e-4, "rounding shows"
        assert [name for name, passed in verdicts(lost).items() if passed is False] == [CHANGED]
