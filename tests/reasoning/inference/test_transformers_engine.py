"""The engine on a trained checkpoint: it hears, in both readouts, and batches change nothing."""

from __future__ import annotations

import numpy as np
import pytest

from data_builders.rows import read_corpus, split_clips
from reasoning.distributions import jsd_bits, normalize_votes
from reasoning.inference.engine import Request
from reasoning.inference.transformers_engine import TransformersEngine
from reasoning.models.loading import load_model
from reasoning.response import read_response


@pytest.fixture(scope="module")
def asked(trained_family):
    corpus = read_corpus(trained_family.corpus)
    clips = split_clips(corpus, 0)["test"]
    engine = TransformersEngine(load_model(trained_family.model), corpus.info.emotions, batch_size=5)
    requests = [Request(c.id, corpus.root / c.audio, c.transcript) for c in clips]
    return engine, requests, normalize_votes([c.votes for c in clips]), corpus.info.emotions


def shifted(requests):
    """Every request with another emotion's tone of the same speaker."""
    return [
        Request(r.id, other.audio, r.transcript) for r, other in zip(requests, requests[1:] + requests[:1], strict=True)
    ]


def label_jsd(engine, requests, votes):
    return jsd_bits(votes, [s.probabilities for s in engine.score_labels(requests)]).mean()


def verbal_jsd(engine, requests, votes, emotions):
    readings = [read_response(g.text, emotions) for g in engine.generate(requests, max_new_tokens=96)]
    assert all(r.probabilities for r in readings), [g.text for g in engine.generate(requests[:2], max_new_tokens=96)]
    return jsd_bits(votes, [r.probabilities for r in readings]).mean()


def test_label_readout_hears_unseen_speakers_and_fails_when_the_audio_is_swapped(asked):
    engine, requests, votes, _ = asked
    assert label_jsd(engine, requests, votes) < 0.1
    assert label_jsd(engine, shifted(requests), votes) > 0.4


def written_votes(engine, requests):
    return [g.text.partition("Vote: ")[2].partition("\n")[0] for g in engine.generate(requests, max_new_tokens=96)]


def test_the_vote_that_is_written_follows_the_sound(asked):
    engine, requests, votes, emotions = asked
    most = [emotions.names[i] for i in votes.argmax(1)]
    true, swapped = written_votes(engine, requests), written_votes(engine, shifted(requests))
    assert sum(a == b for a, b in zip(true, most, strict=True)) >= 10
    assert sum(a == b for a, b in zip(swapped, most, strict=True)) <= 2


@pytest.mark.parametrize("trained_family", ["trained_checkpoint"], indirect=True)  # the other's sums are often wrong
def test_verbalized_readout_hears_and_fails_when_the_audio_is_swapped(asked):
    engine, requests, votes, emotions = asked
    assert verbal_jsd(engine, requests, votes, emotions) < 0.15
    assert verbal_jsd(engine, shifted(requests), votes, emotions) > 0.4


def test_silence_and_missing_audio_lose_what_the_audio_told(asked):
    engine, requests, votes, _ = asked
    silent = [Request(r.id, np.zeros(12_000, np.float32), r.transcript) for r in requests]
    deaf = [Request(r.id, None, r.transcript) for r in requests]
    assert label_jsd(engine, silent, votes) > 0.35
    assert label_jsd(engine, deaf, votes) > 0.35


def test_batch_size_and_order_do_not_change_an_answer(asked):
    engine, requests, _, emotions = asked
    one = TransformersEngine(engine.loaded, emotions, batch_size=1, memory=engine.memory)
    mixed = [requests[0], Request("deaf", None, "a tone"), *requests[1:4]]
    together = {s.id: s.probabilities for s in engine.score_labels(mixed)}
    for score in one.score_labels(mixed):
        np.testing.assert_allclose(score.probabilities, together[score.id], atol=1e-5)
    texts = {g.id: g.text for g in engine.generate(mixed, max_new_tokens=40)}
    assert texts == {g.id: g.text for g in one.generate(mixed, max_new_tokens=40)}


def test_a_cut_generation_is_marked_and_the_same_seed_samples_the_same(asked):
    engine, requests, *_ = asked
    assert all(g.truncated and g.tokens == 5 for g in engine.generate(requests[:2], max_new_tokens=5))
    sample = [
        [g.text for g in engine.generate(requests, max_new_tokens=70, temperature=1.5, seed=s)] for s in (1, 1, 2)
    ]
    assert sample[0] == sample[1] != sample[2]


def test_samples_of_a_clip_follow_one_another_and_differ_only_where_drawn(asked):
    engine, requests, *_ = asked
    few = requests[:4]  # more texts than a batch holds
    written = list(engine.generate(few, max_new_tokens=40, temperature=1.5, samples=3))
    assert [g.id for g in written] == [r.id for r in few for _ in range(3)]
    assert len({g.text for g in written[:3]}) == 3
    greedy = [g for g in engine.generate(few, max_new_tokens=40) for _ in range(3)]
    assert list(engine.generate(few, max_new_tokens=40, samples=3)) == greedy


def test_sampling_options_of_a_checkpoint_do_not_reach_an_answer(asked):
    engine, requests, *_ = asked
    config = engine.loaded.base.generation_config

    def texts(temperature):
        return [g.text for g in engine.generate(requests[:3], max_new_tokens=40, temperature=temperature)]

    before = texts(0.0), texts(1.5)
    config.repetition_penalty, config.top_k, config.top_p = 5.0, 1, 0.1
    after = texts(0.0), texts(1.5)
    config.repetition_penalty = config.top_k = config.top_p = None
    assert before == after
    assert before[0] != before[1]


def test_the_label_readout_stands_on_the_thinking_that_was_written_and_closes_one_without_an_end(asked):
    engine, requests, *_ = asked
    clip = requests[0]

    def scored(written):
        return next(engine.score_labels([Request(clip.id, clip.audio, clip.transcript, "think", written)]))

    ended, cut = scored("<think>\nA tone.\n</think>\n<answer>Vote: low"), scored("<think>\nA tone.")
    given = next(
        engine.score_labels_after([Request(clip.id, clip.audio, clip.transcript, "think")], {clip.id: "A tone."})
    )
    assert ended.probabilities == cut.probabilities == given.probabilities
    assert (ended.prefix, ended.forced, cut.forced) == ("own_think", False, True)
    assert scored("<think>\nNo tone at all, none.\n</think>").probabilities != ended.probabilities


def test_a_label_readout_at_level_think_needs_what_the_model_wrote(asked):
    engine, requests, *_ = asked
    with pytest.raises(ValueError, match="stands on what the model wrote"):
        next(engine.score_labels([Request(requests[0].id, requests[0].audio, None, "think")]))
