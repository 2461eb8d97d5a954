"""vLLM against transformers on a trained checkpoint, offline and served: same prompts, texts and label shares."""

from __future__ import annotations

import numpy as np
import pytest

from reasoning.distributions import jsd_bits, normalize_votes
from reasoning.errors import ConfigError, ModelError
from reasoning.inference.endpoint import Endpoint
from reasoning.inference.engine import Request
from reasoning.inference.local_vllm import require_vllm
from reasoning.inference.server_engine import LocalCheckpoint, ServerEngine
from reasoning.inference.transformers_engine import TransformersEngine
from reasoning.inference.vllm_engine import VllmEngine
from reasoning.models.loading import load_model
from reasoning.response import read_response

LABEL_TOLERANCE = 1e-4
"""Largest difference of a label's probability between two engines in float32. docs/engines.md states it."""


@pytest.fixture(scope="session")
def offline(trained_checkpoint, tones):
    """The one vLLM engine of a test session: starting one takes from half a minute to minutes."""
    return VllmEngine(trained_checkpoint.model, tones.emotions, batch_size=5)


@pytest.fixture(scope="session")
def offline_flamingo(trained_flamingo, tones):
    """Kept as long as the one beside it: shut down, it would take down the groups that both compute in."""
    return VllmEngine(trained_flamingo.model, tones.emotions, batch_size=5)


@pytest.fixture(scope="session")
def served(vllm_server, trained_checkpoint, tones):
    """The engine on `equivox serve`: here vLLM's own tower hears, and its own template writes the prompt."""
    checkpoint = LocalCheckpoint.read(trained_checkpoint.model)
    return ServerEngine(Endpoint(vllm_server.url), tones.emotions, model=vllm_server.model, checkpoint=checkpoint)


def with_controls(requests):
    """True audio, no audio, silence and no words, in one stream."""
    silence = Request("silent", np.zeros(12_000, np.float32), "a tone")
    return [*requests, Request("deaf", None, "a tone"), silence, Request("wordless", requests[0].audio, None)]


def label_rows(engine, requests):
    return np.array([s.probabilities for s in engine.score_labels(requests)])


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize("name", ["offline", "served"])
class TestParity:
    @pytest.fixture
    def engine(self, request, name):
        return request.getfixturevalue(name)

    @pytest.mark.parametrize("swapped", [False, True])
    def test_greedy_texts_are_the_same_with_true_and_with_swapped_audio(self, engine, tones, swapped):
        asked = with_controls(tones.shifted() if swapped else tones.requests)
        assert list(engine.generate(asked, max_new_tokens=96)) == list(tones.engine.generate(asked, max_new_tokens=96))

    @pytest.mark.parametrize("swapped", [False, True])
    def test_guided_texts_are_the_same_and_can_all_be_read(self, engine, tones, swapped):
        asked = with_controls(tones.shifted() if swapped else tones.requests)
        ours = list(engine.generate(asked, max_new_tokens=96, guided=True))
        assert ours == list(tones.engine.generate(asked, max_new_tokens=96, guided=True))
        assert not any(read_response(answer.text, tones.emotions).problems for answer in ours)

    @pytest.mark.parametrize("swapped", [False, True])
    def test_label_shares_agree_with_true_and_with_swapped_audio(self, engine, tones, swapped):
        asked = with_controls(tones.shifted() if swapped else tones.requests)
        np.testing.assert_allclose(label_rows(engine, asked), label_rows(tones.engine, asked), atol=LABEL_TOLERANCE)

    def test_labels_that_share_a_first_token_are_scored_whole(self, engine, tones, shared_first_tokens, monkeypatch):
        monkeypatch.setattr(engine, "prompter", shared_first_tokens.prompter)
        monkeypatch.setattr(engine, "emotions", shared_first_tokens.prompter.emotions, raising=False)
        asked = with_controls(tones.requests[:4])
        np.testing.assert_allclose(
            label_rows(engine, asked), label_rows(shared_first_tokens, asked), atol=LABEL_TOLERANCE
        )

    def test_swapped_audio_costs_more_than_a_quarter_of_a_bit(self, engine, tones):
        votes = normalize_votes(tones.votes)
        true = jsd_bits(votes, label_rows(engine, tones.requests)).mean()
        assert true < 0.1
        assert jsd_bits(votes, label_rows(engine, tones.shifted())).mean() > true + 0.25

    def test_own_thinking_is_closed_and_stood_on(self, engine, tones):
        written = ("<think>\nA tone that", "<think>\nA tone.\n</think>\n<answer>Vote: ")
        asked = [
            Request(r.id, r.audio, r.transcript, "think", text)
            for r, text in zip(tones.requests, written, strict=False)
        ]
        both = zip(engine.score_labels(asked), tones.engine.score_labels(asked), (True, False), strict=True)
        for one, other, forced in both:
            assert (one.prefix, one.forced) == (other.prefix, other.forced) == ("own_think", forced)
            np.testing.assert_allclose(one.probabilities, other.probabilities, atol=LABEL_TOLERANCE)

    def test_a_clips_sample_depends_on_the_seed_and_not_on_its_neighbours(self, engine, tones):
        def sample(requests, seed):
            return {g.id: g.text for g in engine.generate(requests, max_new_tokens=60, temperature=1.5, seed=seed)}

        whole = sample(tones.requests, 1)
        assert {k: v for k, v in whole.items() if k == tones.requests[3].id} == sample(tones.requests[3:4], 1)
        assert whole != sample(tones.requests, 2)
        options = {"max_new_tokens": 60, "temperature": 1.5, "seed": 1, "samples": 3}
        several = list(engine.generate(tones.requests[2:4], **options))
        assert [g.id for g in several] == [r.id for r in tones.requests[2:4] for _ in range(3)]
        assert [several[0].text, several[3].text] == [whole[r.id] for r in tones.requests[2:4]]
        assert len({g.text for g in several[3:]}) == 3
        assert several[3:] == list(engine.generate(tones.requests[3:4], **options))

    def test_a_prompt_that_does_not_fit_is_refused_with_clip_length_and_limit(self, engine, tones):
        with pytest.raises(ModelError, match=rf"\[{tones.requests[0].id}\] prompt: needs \d+ prompt .* holds 1024"):
            list(engine.generate(tones.requests[:1], max_new_tokens=1000))


@pytest.mark.vllm
@pytest.mark.slow
def test_an_audio_flamingo_answers_and_scores_as_in_transformers(offline_flamingo, trained_flamingo, tones):
    reference = TransformersEngine(load_model(trained_flamingo.model), tones.emotions)
    for requests in (tones.requests, tones.shifted()):
        asked = with_controls(requests)
        ours, theirs = (list(e.generate(asked, max_new_tokens=96)) for e in (offline_flamingo, reference))
        assert ours == theirs
        shares = label_rows(offline_flamingo, asked)
        np.testing.assert_allclose(shares, label_rows(reference, asked), atol=LABEL_TOLERANCE)
        heard = jsd_bits(normalize_votes(tones.votes), shares[: len(requests)]).mean()
        assert heard < 0.1 if requests is tones.requests else heard > 0.35


@pytest.mark.vllm
@pytest.mark.slow
def test_audio_tokens_are_never_sampled_even_by_a_model_that_wants_nothing_else(offline, tones):
    never = set(tones.engine.loaded.modality_token_ids())
    prompts = offline._prompts(tones.requests[:4], [""] * 4, 40)
    eager = {"temperature": 2.0, "max_tokens": 40, "ignore_eos": True, "logit_bias": dict.fromkeys(never, 100.0)}
    banned = offline.vllm.ask(prompts, [eager] * 4)
    assert not never & {token for output in banned for token in output.outputs[0].token_ids}
    offline.vllm.never, kept = [], offline.vllm.never
    free = offline.vllm.ask(prompts, [eager] * 4)
    offline.vllm.never = kept
    assert {token for output in free for token in output.outputs[0].token_ids} <= never


@pytest.mark.vllm
@pytest.mark.slow
def test_a_clip_passes_the_tower_once_for_all_its_prompts(offline, tones):
    list(offline.score_labels(tones.requests))
    before = offline.memory.passes
    list(offline.generate(tones.requests, max_new_tokens=3))
    list(offline.score_labels(tones.shifted()))
    assert offline.memory.passes == before


def test_without_vllm_the_cure_is_named(monkeypatch):
    monkeypatch.setattr("reasoning.inference.local_vllm.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"vLLM is not installed.*docs/engines.md"):
        require_vllm()
