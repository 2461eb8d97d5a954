"""Swapped traces and sounds: who is asked what, what the figures are, and what they let one say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_builders.rows import read_corpus, split_clips
from reasoning.emotions import CREMA_D
from reasoning.errors import EvaluationError
from reasoning.evaluation.statistics import Interval
from reasoning.evaluation.trace_swap import swap_traces, verdict
from reasoning.inference.engine import LabelScores, Request
from reasoning.inference.transformers_engine import TransformersEngine
from reasoning.models.loading import load_model


class Follower:
    """An engine of a known kind: it answers the votes of the clip whose trace, or whose sound, it is given."""

    def __init__(self, clips, follows: str) -> None:
        self.votes = {clip.id: np.array(clip.votes) / sum(clip.votes) for clip in clips}
        self.follows = follows

    def score_labels_after(self, requests, thinking):
        for request in requests:
            assert request.level == "think"
            whose = {"trace": thinking[request.id], "sound": request.audio.stem}.get(self.follows)
            shares = self.votes[whose] if whose else np.full(6, 1 / 6)
            yield LabelScores(request.id, tuple(shares), "label_teacher_forced")


@pytest.fixture
def corpus(tone_corpus):
    return read_corpus(tone_corpus)


@pytest.mark.parametrize(
    ("follows", "says"),
    [
        ("trace", "the trace alone fixes the answer"),
        ("sound", "the sound decides"),
        ("nothing", "neither counts"),
    ],
)
def test_what_an_answer_follows_is_found_and_said(corpus, follows, says):
    traces = {clip.id: clip.id for clip in corpus.clips}
    found = swap_traces(Follower(corpus.clips, follows), corpus.clips, traces, corpus.root)
    assert found["verdict"].startswith(says)
    assert found["readout"] == "label_teacher_forced"
    own = found["conditions"]["own"]["jsd_bits"]["estimate"]
    assert (own == pytest.approx(0, abs=1e-6)) == (follows != "nothing")
    swapped = {"trace": "other_trace", "sound": "other_sound"}.get(follows)
    for name, difference in found["differences"].items():
        assert (difference["jsd_bits"]["estimate"] > 0.25) == (name == swapped)
        assert (found["moved"][name]["estimate"] > 0.25) == (name == swapped)


@pytest.mark.parametrize(
    ("trace", "sound", "says"),
    [
        ((0.1, 0.05, 0.15), (0.1, 0.05, 0.15), "both count"),
        ((0.1, 0.05, 0.15), (0.0, -0.02, 0.02), "not decided"),
        ((0.0, -0.005, 0.005), (0.0, -0.02, 0.02), "not decided"),
        ((0.1, float("nan"), float("nan")), (0.1, float("nan"), float("nan")), "not decided"),
    ],
)
def test_a_verdict_needs_an_interval_clear_of_zero_or_within_the_margin(trace, sound, says):
    assert verdict(Interval(*trace), Interval(*sound)).startswith(says)


def test_clips_without_a_trace_are_counted_and_one_speaker_alone_is_refused(corpus):
    traces = {clip.id: clip.id for clip in corpus.clips[:12]}
    found = swap_traces(Follower(corpus.clips, "trace"), corpus.clips, traces, corpus.root, limit=5)
    assert (found["n_clips"], found["n_without_trace"]) == (5, len(corpus.clips) - 12)
    alone = {clip.id: clip.id for clip in corpus.clips if clip.speaker == "s0"}
    with pytest.raises(EvaluationError, match="by fewer than two speakers"):
        swap_traces(Follower(corpus.clips, "trace"), corpus.clips, alone, corpus.root)


def test_the_engine_reads_the_labels_after_the_thinking_that_it_is_given_and_hears(thinking_checkpoint):
    """Against the full forward of one row, and against the same thinking with another clip's sound."""
    import torch

    from reasoning.models.memory import batch_heard
    from reasoning.response import ANSWER_PREFIX

    corpus = read_corpus(thinking_checkpoint.corpus)
    engine = TransformersEngine(load_model(thinking_checkpoint.model), CREMA_D, batch_size=3)
    clips = split_clips(corpus, 0)["train"][:6]
    thinking = {clip.id: thinking_checkpoint.traces[clip.id] for clip in clips}

    def read(sounds: list[Path]) -> np.ndarray:
        requests = [Request(c.id, s, c.transcript, "think") for c, s in zip(clips, sounds, strict=True)]
        return np.array([a.probabilities for a in engine.score_labels_after(requests, thinking)])

    sounds = [corpus.root / clip.audio for clip in clips]
    found = read(sounds)
    heard = engine.memory.hear(sounds[:1], [clips[0].id])
    text = f"<think>\n{thinking[clips[0].id]}\n</think>\n{ANSWER_PREFIX}"
    ids = engine.prompter.prompt_ids(clips[0].transcript, heard[0], "think") + engine.prompter.encode(text)
    with torch.no_grad():
        whole, audio = torch.tensor([ids]), batch_heard(heard, engine.loaded.family)
        logits = engine.loaded.base(input_ids=whole, attention_mask=torch.ones_like(whole), **audio).logits[0, -1]
    labels = [engine.prompter.encode(f" {name}")[0] for name in CREMA_D.names]
    np.testing.assert_allclose(found[0], torch.softmax(logits[labels].double(), -1), atol=1e-5)
    assert np.abs(read(sounds[::-1]) - found).sum(axis=1).max() > 0.5, "the sound moves the readout"
