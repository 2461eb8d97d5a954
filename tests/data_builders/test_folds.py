"""Folds: nobody is trained on and tested, and every fold looks like the corpus."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_builders.folds import assign_folds, dev_speakers, place, some_speakers, speaker_part, split_of
from reasoning.clips import Clip
from reasoning.errors import ConfigError, CorpusError


def clips_of(counts: dict[str, int], sexes: dict[str, str]) -> list[Clip]:
    return [
        Clip(
            f"{speaker}-{i}",
            "a.wav",
            1.0,
            "hi",
            "en",
            speaker,
            sexes[speaker],
            30,
            "train",
            0,
            (1, 0),
            1,
            None,
            "human",
        )
        for speaker, n in counts.items()
        for i in range(n)
    ]


SPEAKERS = {f"s{i:02d}": 12 + i % 5 for i in range(66)}
SEXES = {speaker: "male" if i % 2 else "female" for i, speaker in enumerate(SPEAKERS)}


def test_folds_are_balanced_by_clips_and_by_sex():
    folds = assign_folds(SPEAKERS, SEXES)
    clips, by_sex = Counter(), Counter()
    for speaker, fold in folds.items():
        clips[fold] += SPEAKERS[speaker]
        by_sex[SEXES[speaker], fold] += 1
    assert set(clips) == set(range(5))
    assert max(clips.values()) - min(clips.values()) <= max(SPEAKERS.values())
    for sex in ("male", "female"):
        counts = [by_sex[sex, fold] for fold in range(5)]
        assert max(counts) - min(counts) <= 1


def test_few_equal_speakers_fill_the_folds_evenly():
    """A rule that counts clips of a sex before clips of a fold gives 40, 28, 28, 52, 52 here."""
    clips = {f"s{i:02d}": 14 if i < 5 else 13 for i in range(15)}
    folds = assign_folds(clips, {speaker: "female" if i % 2 == 0 else "male" for i, speaker in enumerate(clips)})
    assert sorted(Counter(folds.values()).values()) == [3] * 5
    totals = Counter()
    for speaker, fold in folds.items():
        totals[fold] += clips[speaker]
    assert max(totals.values()) - min(totals.values()) <= 2


def test_folds_depend_on_the_seed_and_not_on_the_order_of_speakers():
    backwards = dict(reversed(SPEAKERS.items()))
    assert assign_folds(SPEAKERS, SEXES) == assign_folds(backwards, SEXES)
    assert assign_folds(SPEAKERS, SEXES) != assign_folds(SPEAKERS, SEXES, seed=1)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text("abcdef", min_size=1), st.integers(1, 40), min_size=5, max_size=30), st.integers(0, 4))
def test_splits_are_speaker_disjoint_and_complete_for_any_corpus(counts, fold):
    sexes = {speaker: "male" if len(speaker) % 2 else "female" for speaker in counts}
    clips = place(clips_of(counts, sexes))
    splits = split_of(clips, fold)
    speakers = {name: {c.speaker for c, s in zip(clips, splits, strict=True) if s == name} for name in set(splits)}
    assert speakers["test"] == {c.speaker for c in clips if c.fold == fold}
    assert sum(len(s) for s in speakers.values()) == len(counts)
    assert set(splits) == {"train", "dev", "test"}


def test_dev_is_half_of_the_next_fold_in_both_sexes():
    clips = place(clips_of(SPEAKERS, SEXES))
    for fold in range(5):
        pool = {c.speaker for c in clips if c.fold == (fold + 1) % 5}
        dev = dev_speakers(clips, fold)
        assert dev < pool
        assert abs(len(dev) - len(pool) / 2) <= 0.5
        for sex in ("male", "female"):
            assert abs(2 * sum(SEXES[s] == sex for s in dev) - sum(SEXES[s] == sex for s in pool)) <= 1


def test_fewer_speakers_than_folds_are_refused():
    with pytest.raises(CorpusError, match="4 speakers cannot fill 5"):
        assign_folds(dict.fromkeys("abcd", 3), dict.fromkeys("abcd"))


@given(st.floats(0.05, 0.95))
@settings(max_examples=20)
def test_parts_of_the_speakers_share_nobody_and_together_are_all(cut):
    clips = clips_of(SPEAKERS, SEXES)
    first, second = some_speakers(clips, f"0:{cut:.4f}"), some_speakers(clips, f"{cut:.4f}:1")
    heard, kept = ({clip.speaker for clip in part} for part in (first, second))
    assert not heard & kept
    assert heard | kept == set(SPEAKERS)
    assert len(heard) == pytest.approx(cut * len(SPEAKERS), abs=0.51)
    assert [clip for clip in clips if clip.speaker in heard] == list(first)
    assert some_speakers(clips[::-1], f"0:{cut:.4f}") == first[::-1]
    assert some_speakers(clips, None) == tuple(clips)


@pytest.mark.parametrize("part", ["0.5", "1:0", "0:1.2", "a:b", "", ":", "0.3:0.3", "-1:1", "1..:2"])
def test_a_part_that_is_not_from_to_is_refused(part):
    with pytest.raises(ConfigError, match="expected FROM:TO"):
        speaker_part(part)
