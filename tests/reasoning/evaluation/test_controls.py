from dataclasses import replace

import numpy as np
import pytest

from reasoning.clips import Clip
from reasoning.distributions import jsd_bits, normalize_votes
from reasoning.errors import EvaluationError
from reasoning.evaluation.controls import MIN_DIFFERENCE, plan_shuffled, silence

CLIP = Clip("a", "a.wav", 1.25, "hello", "en", "1", None, None, "test", 0, (9, 0, 0), 9, None, "human")


def clip(name: str, speaker: str, votes: tuple[int, ...], transcript: str | None = "hello") -> Clip:
    return replace(
        CLIP, id=name, audio=f"{name}.wav", speaker=speaker, votes=votes, n_votes=sum(votes), transcript=transcript
    )


def corpus(seed: int = 0) -> list[Clip]:
    rng = np.random.default_rng(seed)
    return [
        clip(
            f"{speaker}-{i}",
            str(speaker),
            tuple(rng.multinomial(9, rng.dirichlet([1, 1, 1])).tolist()),
            f"text {i % 4}",
        )
        for speaker in range(12)
        for i in range(12)
    ]


def test_donors_are_other_speakers_with_the_same_sentence_and_other_votes():
    clips = corpus()
    plan = plan_shuffled(clips)
    assert plan.counts() == {"n_clips": 144, "below_threshold": 0, "other_sentence": 0}
    for one in clips:
        donor = plan.donors[one.id]
        assert donor.speaker != one.speaker
        assert donor.transcript == one.transcript
        assert jsd_bits(normalize_votes([one.votes]), normalize_votes([donor.votes]))[0] >= MIN_DIFFERENCE


def test_the_plan_repeats_with_its_seed_and_changes_with_another():
    clips = corpus()
    donors = [{k: d.id for k, d in plan_shuffled(clips, seed).donors.items()} for seed in (0, 0, 1)]
    assert donors[0] == donors[1]
    assert donors[0] != donors[2]


def test_without_different_votes_the_most_different_is_taken_and_counted():
    clips = [clip("a", "1", (9, 0, 0)), clip("b", "2", (9, 0, 0)), clip("c", "3", (8, 1, 0))]
    plan = plan_shuffled(clips)
    assert plan.donors["a"].id == "c"
    assert plan.below_threshold == 3


def test_without_the_same_sentence_another_is_taken_and_counted():
    clips = [clip("a", "1", (9, 0, 0)), clip("b", "2", (0, 9, 0), "other"), clip("c", "1", (0, 9, 0))]
    plan = plan_shuffled(clips)
    assert plan.donors["a"].id == "b"
    assert plan.other_sentence == 3
    wordless = [clip("a", "1", (9, 0, 0), None), clip("b", "2", (0, 9, 0), None)]
    assert plan_shuffled(wordless).other_sentence == 2, "what is not known is not the same"


def test_one_speaker_cannot_be_shuffled():
    with pytest.raises(EvaluationError, match="only speaker 1"):
        plan_shuffled([clip("a", "1", (9, 0, 0)), clip("b", "1", (0, 9, 0))])


def test_silence_lasts_as_long_as_the_clip():
    samples = silence(CLIP)
    assert samples.dtype == np.float32
    assert len(samples) == 20000
    assert not samples.any()
