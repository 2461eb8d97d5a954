"""The studio corpus: really spoken, repeatable to the byte, resumable, and always called what it is."""

import socket
import time
from collections import Counter

import numpy as np
import pytest

from data_builders import studio
from data_builders.rows import read_corpus, split_clips
from data_builders.synthesis.hibari import Hibari
from reasoning.audio import read_audio
from reasoning.distributions import entropy_bits, jsd_bits, normalize_votes
from reasoning.emotions import CREMA_D
from reasoning.errors import ConfigError, CorpusError

CLIPS = 10


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A corpus of ten clips, made with the network switched off; and the processor seconds it took."""
    out = tmp_path_factory.mktemp("studio")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the studio went online"))
        start = time.process_time()
        corpus, reused = studio.prepare(out, clips=CLIPS)
    assert not reused
    return out, corpus, time.process_time() - start


@pytest.fixture
def said(monkeypatch):
    """The texts that were really synthesized."""
    texts, say = [], Hibari.say

    def counted(self, text, *rest):
        texts.append(text)
        return say(self, text, *rest)

    monkeypatch.setattr(Hibari, "say", counted)
    return texts


def test_every_row_and_the_corpus_say_that_speech_is_synthetic_and_raters_are_simulated(made):
    out, _, _ = made
    corpus = read_corpus(out)
    assert corpus.info.statement == "synthetic speech, simulated raters"
    assert corpus.info.rater_task.startswith("simulated")
    assert {clip.source for clip in corpus.clips} == {"synthetic"}
    assert {clip.synthesizer for clip in corpus.clips} == {"hibari-tts 0.2.1"}
    assert b"synthetic speech, simulated raters" in files(out)["corpus.json"]


def test_every_clip_is_speech_of_the_stated_length_at_16_khz(made):
    _, corpus, _ = made
    for clip in corpus.clips:
        samples = read_audio(corpus.root / clip.audio)
        assert len(samples) / 16_000 == clip.duration_s
        assert 1 < clip.duration_s < 5


def test_intended_is_the_largest_share_of_the_requested_mixture(made):
    _, corpus, _ = made
    for clip in corpus.clips:
        shares = {name: clip.extra[f"requested_{name}"] for name in CREMA_D.names}
        assert sum(shares.values()) == pytest.approx(1, abs=5e-4)
        assert clip.intended == max(shares, key=shares.get)


def test_two_hundred_clips_take_well_under_two_minutes_of_one_core(made):
    _, _, seconds = made
    assert seconds / CLIPS * 200 < 60


def test_folds_hold_out_speakers(made):
    _, corpus, _ = made
    for fold in range(5):
        speakers = [{clip.speaker for clip in part} for part in split_clips(corpus, fold).values()]
        assert sum(map(len, speakers)) == len(set.union(*speakers)) == corpus.info.counts["speakers"]


def test_a_second_run_is_equal_to_the_byte(made, tmp_path):
    out, _, _ = made
    studio.prepare(tmp_path, clips=CLIPS)
    assert files(tmp_path) == files(out)


def test_another_seed_is_another_corpus():
    one, two = studio.recipes(20, seed=0), studio.recipes(20, seed=1)
    assert not {recipe.audio for recipe in one} & {recipe.audio for recipe in two}
    assert [recipe.votes for recipe in one] != [recipe.votes for recipe in two]


def test_more_clips_do_not_change_the_first_ones():
    assert studio.recipes(30)[:10] == studio.recipes(10)


def test_a_run_that_was_killed_goes_on_and_ends_in_the_same_corpus(made, tmp_path, said, monkeypatch):
    out, _, _ = made
    say = Hibari.say

    def killed(self, *rest):
        if len(said) == 4:
            raise KeyboardInterrupt
        return say(self, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Hibari, "say", killed)
        with pytest.raises(KeyboardInterrupt):
            studio.prepare(tmp_path, clips=CLIPS)
    assert len(files(tmp_path)) == 4
    with pytest.raises(CorpusError, match="no corpus"):
        read_corpus(tmp_path)
    said.clear()
    studio.prepare(tmp_path, clips=CLIPS)
    assert len(said) == CLIPS - 4
    assert files(tmp_path) == files(out)


def test_damaged_audio_is_made_again_and_whole_audio_is_kept(made, tmp_path, said):
    out, corpus, _ = made
    for name, data in files(out).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    assert studio.prepare(tmp_path, clips=CLIPS)[1]
    (tmp_path / "corpus.json").unlink()
    (tmp_path / corpus.clips[0].audio).unlink()
    broken = tmp_path / corpus.clips[1].audio
    broken.write_bytes(broken.read_bytes()[:3000])
    assert not studio.prepare(tmp_path, clips=CLIPS)[1]
    assert said == [corpus.clips[0].transcript, corpus.clips[1].transcript]
    assert files(tmp_path) == files(out)


def test_audio_of_other_settings_does_not_stay_behind(tmp_path):
    studio.prepare(tmp_path, clips=6)
    (tmp_path / "audio" / "mine.flac").write_bytes(b"not the builder's")
    corpus, reused = studio.prepare(tmp_path, clips=5)
    assert not reused
    assert {path.name for path in (tmp_path / "audio").iterdir()} == {
        "mine.flac",
        *(clip.audio.removeprefix("audio/") for clip in corpus.clips),
    }


def test_too_few_clips_are_refused_before_anything_is_made(tmp_path):
    with pytest.raises(CorpusError, match="3 speakers cannot fill 5"):
        studio.prepare(tmp_path / "out", clips=3)
    with pytest.raises(ConfigError, match="0 clips"):
        studio.prepare(tmp_path / "out", clips=0)
    assert not (tmp_path / "out").exists()


# --- what the default corpus teaches; recipes only, no sound


@pytest.fixture(scope="module")
def default():
    made = studio.recipes()
    return np.array([recipe.mixture for recipe in made]), normalize_votes([recipe.votes for recipe in made]), made


def test_votes_follow_the_requested_mixture(default):
    mixtures_NK, p_NK, _ = default
    for k, name in enumerate(CREMA_D.names):
        # Opposites cancel in a mixture and are heard as neutral, so neutral follows its own share least (.43).
        assert np.corrcoef(mixtures_NK[:, k], p_NK[:, k])[0, 1] > (0.35 if name == "neutral" else 0.6), name


def test_votes_are_about_as_mixed_as_those_of_crema_d(default):
    _, p_NK, _ = default
    assert entropy_bits(p_NK).mean() == pytest.approx(1.30, abs=0.1)
    assert jsd_bits(p_NK, p_NK.mean(axis=0, keepdims=True)).mean() == pytest.approx(0.28, abs=0.02)


def test_sentences_and_voices_take_turns_so_that_neither_gives_the_votes_away(default):
    _, p_NK, made = default
    for of in (lambda r: r.text, lambda r: r.voice.name):
        groups = Counter(of(recipe) for recipe in made)
        assert max(groups.values()) - min(groups.values()) <= 2
    assert len({(recipe.text, recipe.voice.name) for recipe in made}) > 150
    # The mean of a sentence's other clips says no more about a clip than the mean of all of them does.
    names = np.array([recipe.text for recipe in made])
    prior = jsd_bits(p_NK, p_NK.mean(axis=0, keepdims=True)).mean()
    by_text = [
        jsd_bits(p_NK[i : i + 1], p_NK[(names == names[i]) & (np.arange(len(made)) != i)].mean(axis=0, keepdims=True))[
            0
        ]
        for i in range(len(made))
    ]
    assert np.mean(by_text) > prior - 0.01


def test_there_are_fifteen_speakers_of_both_sexes_in_audibly_different_voices():
    assert len(studio.VOICES) == 15
    assert Counter(voice.sex for voice in studio.VOICES) == {"female": 8, "male": 7}
    settings = [(v.formants, v.pitch_st) for v in studio.VOICES]
    closest = min(
        abs(np.log2(a[0] / b[0])) / 0.05 + abs(a[1] - b[1]) for i, a in enumerate(settings) for b in settings[:i]
    )
    assert closest > 1
    assert max(v.pitch_st for v in studio.VOICES if v.sex == "male") < min(
        v.pitch_st for v in studio.VOICES if v.sex == "female"
    )
