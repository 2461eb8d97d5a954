import base64
import io

import numpy as np
import pytest
import soundfile

from reasoning.errors import EvaluationError
from reasoning.evaluation.report.clips import audio_uri, audio_uris, clip_cards, pick_clips
from reasoning.evaluation.report.views import read_clips, read_scores

IDS = [f"c{i:02}" for i in range(20)]


def in_group(picks, group):
    return [p.id for p in sorted((p for p in picks if group in p.ranks), key=lambda p: p.ranks[group])]


def test_a_quarter_goes_to_each_order():
    jsd = [i / 20 for i in range(20)]
    entropy = [(7 * i % 20) / 20 for i in range(20)]
    picks = pick_clips(IDS, jsd, entropy, 12)
    assert in_group(picks, "best") == ["c00", "c01", "c02"]
    assert in_group(picks, "worst") == ["c19", "c18", "c17"]
    assert in_group(picks, "sample")[::2] == ["c00", "c19"]
    assert in_group(picks, "ambiguous") == ["c17", "c14", "c11"]
    assert len(picks) == len({p.id for p in picks}) <= 12


def test_ties_do_not_depend_on_the_order_of_the_file():
    forward = pick_clips(IDS, [0.5] * 20, [1.0] * 20, 8)
    backward = pick_clips(IDS[::-1], [0.5] * 20, [1.0] * 20, 8)
    assert in_group(forward, "worst") == in_group(backward, "worst") == ["c00", "c01"]


@pytest.mark.parametrize("limit", [0, 1, 2, 3])
def test_a_limit_smaller_than_the_groups_is_used_up_by_the_first_of_them(limit):
    errors = [i / 20 for i in range(20)]
    picks = pick_clips(IDS, errors, errors[::-1], limit)
    assert [pick.ranks for pick in picks] == [{"sample": 0, "best": 0, "ambiguous": 0}, {"worst": 0}][:limit]


def test_fewer_clips_than_asked_for_are_all_shown():
    assert {p.id for p in pick_clips(IDS[:2], [0.1, 0.2], [1, 2], 40)} == {"c00", "c01"}


def test_embedded_audio_is_the_clip(tmp_path):
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    soundfile.write(tmp_path / "a.wav", tone, 16000)
    head, data = audio_uri(tmp_path, "a.wav", "a").split(",")
    heard, rate = soundfile.read(io.BytesIO(base64.b64decode(data)))
    assert head in ("data:audio/mpeg;base64", "data:audio/flac;base64")
    assert rate == 16000
    assert len(heard) == pytest.approx(16000, abs=1200)  # MP3 counts in whole frames
    assert np.argmax(np.abs(np.fft.rfft(heard[:16000]))) == pytest.approx(440, abs=2)


@pytest.mark.parametrize("path", ["../a.wav", "x/../../a.wav", "/etc/passwd"])
def test_a_path_out_of_the_root_is_refused(tmp_path, path):
    with pytest.raises(EvaluationError, match=r"\[clip\] audio: .*leads out"):
        audio_uri(tmp_path, path, "clip")


def test_a_link_inside_the_root_may_lead_elsewhere(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "root").mkdir()
    soundfile.write(tmp_path / "store" / "a.wav", np.full(4000, 0.1), 16000)
    (tmp_path / "root" / "a.wav").symlink_to(tmp_path / "store" / "a.wav")
    assert audio_uri(tmp_path / "root", "a.wav", "a").startswith("data:audio/")


def test_audio_past_the_budget_is_left_out(tmp_path):
    for name in "abc":
        soundfile.write(tmp_path / f"{name}.wav", np.random.default_rng(0).normal(0, 0.1, 16000), 16000)
    one = len(audio_uri(tmp_path, "a.wav", "a"))
    found = audio_uris(tmp_path, [(n, f"{n}.wav") for n in "abc"], budget=2 * one)
    assert list(found) == ["a", "b"]


def test_a_card_shows_votes_beside_every_readout(make_material):
    material = make_material()
    scores = read_scores(material.scores)
    cards = clip_cards(scores, read_clips(material.predictions, scores), material.root, 40)
    card = next(c for c in cards if c.id == "clip2")
    assert card.ranked == (("neutral", 4), ("sad", 4), ("fear", 2))
    assert card.voted == pytest.approx((0, 0, 0.2, 0, 0.4, 0.4))
    assert [r.title for r in card.systems[0].readouts] == ["label", "verbalized"]
    assert card.systems[0].words[0].startswith("<answer>Vote: neutral")


def test_an_unusable_answer_counts_as_one_bit(make_material):
    material = make_material()
    scores = read_scores(material.scores)
    cards = clip_cards(scores, read_clips(material.predictions, scores), material.root, 40)
    verbalized = next(c for c in cards if c.id == "clip4").systems[0].readouts[1]
    assert (verbalized.shares, verbalized.jsd_bits, verbalized.problems) == (None, 1.0, ("truncated",))
