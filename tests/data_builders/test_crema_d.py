"""CREMA-D as released: its official tables in full, and every way in which a copy of it can be broken."""

import csv
import io
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_builders import crema_d
from data_builders.rows import reasons, split_clips
from reasoning.audio import read_audio
from reasoning.distributions import bhattacharyya, jsd_bits, normalize_votes
from reasoning.emotions import CREMA_D
from reasoning.errors import CorpusError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 65000\n"
ACTORS = [1001, 1002, 1003, 1004, 1005, 1006]
NAMES = [f"{actor}_{sentence}_ANG_XX" for actor in ACTORS for sentence in ("DFA", "TSI")]
VOTES = (3, 1, 0, 0, 4, 2)


def tone(seed: int, rate: int = 16_000, seconds: float = 0.4, peak: float = 0.3) -> np.ndarray:
    t = np.arange(int(rate * seconds)) / rate
    return peak * np.sin(2 * np.pi * (150 + 7 * seed) * t)


def encoded(samples: np.ndarray, rate: int = 16_000, kind: str = "WAV") -> bytes:
    sink = io.BytesIO()
    soundfile.write(sink, samples, rate, format=kind)
    return sink.getvalue()


class Release:
    """A small folder in the official layout: 6 actors, 2 sentences each, real wav bytes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("AudioWAV", "AudioMP3", "processedResults"):
            (root / folder).mkdir(parents=True)
        self.votes: list[list[object]] = []
        self.actors: list[list[object]] = [
            [a, 20 + a % 10, ("Male", "Female")[a % 2], "Asian", "Hispanic"] for a in ACTORS
        ]
        self.stimuli = list(enumerate(NAMES, start=1))
        for number, name in self.stimuli:
            for query in (1, 2, 3):
                votes = VOTES if query == 1 else (10, 0, 0, 0, 0, 0)
                self.votes.append([query * 100_000 + number, *votes, name, sum(votes), "N"])
            self.put(f"AudioWAV/{name}.wav", encoded(tone(number)))
        self.write_tables()

    def put(self, path: str, data: bytes) -> None:
        (self.root / path).write_bytes(data)

    def table(self, name: str, header: list[str], rows: list) -> None:
        with (self.root / name).open("w", newline="") as file:
            csv.writer(file, quoting=csv.QUOTE_NONNUMERIC).writerows([header, *rows])

    def write_tables(self) -> None:
        votes = [[str(key), *rest] for key, *rest in self.votes]
        self.table(
            crema_d.VOTES_TABLE, ["", "A", "D", "F", "H", "N", "S", "fileName", "numResponses", "emoVote"], votes
        )
        self.table(crema_d.ACTORS_TABLE, ["ActorID", "Age", "Sex", "Race", "Ethnicity"], self.actors)
        self.table(crema_d.STIMULI_TABLE, ["Stimulus_Number", "Filename"], [list(s) for s in self.stimuli])

    def build(self):
        return crema_d.build(self.root)


@pytest.fixture
def release(tmp_path) -> Release:
    return Release(tmp_path / "CREMA-D")


def assert_only_left_out(release: Release, name: str, reason: str, detail: str = "") -> None:
    clips, left_out = release.build()
    assert [(item["row"], item["reason"]) for item in left_out] == [(name, reason)]
    assert detail in left_out[0]["detail"]
    assert {clip.id for clip in clips} == set(NAMES) - {name}


# --- the official tables


@pytest.fixture(scope="module")
def official(shared_crema_d: Path):
    votes, left_out = crema_d.voice_votes(crema_d.read_tables(shared_crema_d))
    assert left_out == []
    return votes


def test_votes_have_the_official_majority_for_all_7442_clips_ties_included(official, shared_crema_d):
    with (shared_crema_d / "processedResults" / "summaryTable.csv").open(newline="") as file:
        majority = {row["FileName"]: row["VoiceVote"] for row in csv.DictReader(file)}
    letters = {name: name[0].upper() for name in CREMA_D.names}
    ours = {
        row.name: ":".join(letters[e] for e, n in zip(CREMA_D.names, row.votes, strict=True) if n == max(row.votes))
        for row in official
    }
    assert len(ours) == 7442
    assert ours == majority
    assert sum(":" in vote for vote in ours.values()) == 644


def test_vote_counts_are_those_of_the_official_readme(official):
    sizes = [sum(row.votes) for row in official]
    assert (min(sizes), max(sizes), sum(sizes)) == (4, 12, 68_568)
    assert round(np.mean([size > 7 for size in sizes]), 2) == 0.95  # "95% of the clips have more than 7 ratings"


def test_constant_predictors_score_as_known_on_all_clips(official):
    p = normalize_votes([row.votes for row in official])
    uniform, prior = np.full((1, 6), 1 / 6), p.mean(axis=0, keepdims=True)
    figures = {
        "uniform": (jsd_bits(p, uniform).mean(), bhattacharyya(p, uniform).mean()),
        "prior": (jsd_bits(p, prior).mean(), bhattacharyya(p, prior).mean()),
    }
    assert figures["uniform"] == pytest.approx((0.378, 0.657), abs=5e-4)
    assert figures["prior"] == pytest.approx((0.290, 0.738), abs=5e-4)


def test_the_shared_part_of_the_release_becomes_a_corpus_fifty_times_faster_than_it_plays(shared_crema_d, tmp_path):
    start = time.process_time()  # of all threads, so that other work on the machine does not count
    corpus, reused = crema_d.prepare(shared_crema_d, tmp_path)
    seconds = time.process_time() - start
    assert not reused
    assert len(corpus.clips) + len(corpus.info.left_out) == 7442
    assert sum(clip.duration_s for clip in corpus.clips) / seconds > 50
    assert corpus.info.rater_task == "voice only"
    clip = next(clip for clip in corpus.clips if clip.id == "1001_DFA_ANG_XX")
    assert (clip.transcript, clip.speaker, clip.sex, clip.age, clip.intended) == (
        "Don't forget a jacket.",
        "1001",
        "male",
        51,
        "anger",
    )
    assert clip.duration_s == len(read_audio(corpus.root / clip.audio)) / 16_000
    # The folds that every score of the project refers to: a change of seed or rule must not pass unseen.
    assert corpus.info.counts["folds"] == [188, 193, 181, 181, 181]


def test_folds_of_the_shared_part_share_no_actor(shared_crema_d, tmp_path):
    corpus, _ = crema_d.prepare(shared_crema_d, tmp_path)
    for fold in range(5):
        speakers = [{clip.speaker for clip in part} for part in split_clips(corpus, fold).values()]
        assert sum(map(len, speakers)) == len(set.union(*speakers)) == corpus.info.counts["speakers"]
        test = [clip for clip in corpus.clips if clip.fold == fold]
        assert 0.35 < np.mean([clip.sex == "male" for clip in test]) < 0.65


# --- whole and partial copies


def test_only_voice_only_rows_are_votes(release):
    clips, left_out = release.build()
    assert left_out == []
    assert [clip.id for clip in clips] == NAMES
    assert {clip.votes for clip in clips} == {VOTES}
    assert {clip.n_votes for clip in clips} == {10}


def test_a_partial_download_names_exactly_what_is_missing(release):
    gone = NAMES[1:4]
    for name in gone:
        (release.root / f"AudioWAV/{name}.wav").unlink()
    clips, left_out = release.build()
    assert [item["row"] for item in left_out] == gone
    assert reasons(left_out) == {"no audio file": 3}
    assert [clip.id for clip in clips] == [name for name in NAMES if name not in gone]


def test_flac_is_read_beside_wav(release):
    (release.root / f"AudioWAV/{NAMES[0]}.wav").unlink()
    release.put(f"AudioWAV/{NAMES[0]}.flac", encoded(tone(50), kind="FLAC"))
    clips, left_out = release.build()
    assert left_out == []
    assert clips[0].audio == f"AudioWAV/{NAMES[0]}.flac"


@pytest.mark.parametrize("wav", [None, POINTER, b""])
def test_mp3_stands_in_for_a_wav_that_is_missing_or_unusable(release, wav):
    path = release.root / f"AudioWAV/{NAMES[0]}.wav"
    path.unlink() if wav is None else path.write_bytes(wav)
    release.put(f"AudioMP3/{NAMES[0]}.mp3", encoded(tone(50, 44_100, 1.0), 44_100, "MP3"))
    clips, left_out = release.build()
    assert left_out == []
    assert clips[0].audio == f"AudioMP3/{NAMES[0]}.mp3"
    assert clips[0].duration_s == pytest.approx(1.0, abs=0.1)


def test_a_clip_whose_raters_heard_a_wrong_file_is_left_out_even_with_a_good_wav(release):
    name = "1064_IEO_DIS_MD"
    release.actors.append([1064, 40, "Male", "Asian", "Hispanic"])
    release.stimuli.append((13, name))
    release.votes.append([100_013, *VOTES, name, 10, "N"])
    release.write_tables()
    release.put(f"AudioWAV/{name}.wav", encoded(tone(90)))
    assert_only_left_out(release, name, "raters heard a wrong file", "README")


# --- broken audio


@pytest.mark.parametrize(
    ("data", "reason", "detail"),
    [
        (POINTER, "Git-LFS pointer", "pointer"),
        (encoded(np.zeros(8000)), "silent audio", "is silent"),
        (encoded(tone(1, seconds=0.05)), "audio too short", "0.050 s"),
        (b"", "corrupt audio", "empty"),
        (b"not audio at all" * 40, "corrupt audio", "cannot be decoded"),
        (encoded(tone(1))[:6000], "cut audio", "ends early, after 0.19 s"),
    ],
)
def test_unusable_audio_is_named_and_left_out(release, data, reason, detail):
    release.put(f"AudioWAV/{NAMES[4]}.wav", data)
    assert_only_left_out(release, NAMES[4], reason, detail)


def test_a_cut_flac_is_left_out(release):
    noise = np.random.default_rng(0).normal(0, 0.1, 16_000)
    (release.root / f"AudioWAV/{NAMES[4]}.wav").unlink()
    data = encoded(noise, kind="FLAC")
    release.put(f"AudioWAV/{NAMES[4]}.flac", data[: len(data) // 2])
    assert_only_left_out(release, NAMES[4], "corrupt audio", f"AudioWAV/{NAMES[4]}.flac cannot be decoded")


def test_one_recording_under_two_names_is_left_out_twice(release):
    release.put(f"AudioWAV/{NAMES[9]}.wav", (release.root / f"AudioWAV/{NAMES[0]}.wav").read_bytes())
    clips, left_out = release.build()
    assert reasons(left_out) == {"same recording as another clip": 2}
    assert {item["row"] for item in left_out} == {NAMES[0], NAMES[9]}
    assert not {NAMES[0], NAMES[9]} & {clip.id for clip in clips}


def test_audio_without_votes_is_named(release):
    release.put("AudioWAV/1001_IEO_SAD_LO.wav", encoded(tone(60)))
    _, left_out = release.build()
    assert [(item["row"], item["reason"]) for item in left_out] == [("1001_IEO_SAD_LO", "audio without votes")]


# --- broken tables


@pytest.mark.parametrize(
    ("change", "reason", "detail"),
    [
        ({8: 11}, "votes do not add up", "A..S sum to 10, numResponses is 11"),
        ({1: -1, 8: 6}, "votes are not counts", "-1"),
        ({1: 3.5}, "votes are not counts", "3.5"),
        ({1: "NA"}, "votes are not counts", "NA"),
        ({1: 0, 2: 0, 5: 0, 6: 0, 8: 0}, "nobody voted", "numResponses is 0"),
        ({0: 100_002}, "vote row belongs to another clip", "100002"),
    ],
)
def test_a_bad_vote_row_is_named_and_left_out(release, change, reason, detail):
    for column, value in change.items():
        release.votes[0][column] = value
    release.write_tables()
    assert_only_left_out(release, NAMES[0], reason, detail)


def test_a_clip_with_two_vote_rows_is_left_out_once(release):
    release.votes.append(list(release.votes[0]))
    release.write_tables()
    assert_only_left_out(release, NAMES[0], "duplicate vote rows", "2 voice-only rows")


def test_a_clip_without_voice_only_votes_is_left_out(release):
    del release.votes[0]
    release.write_tables()
    assert_only_left_out(release, NAMES[0], "no voice-only vote row")


def test_clips_of_an_unknown_actor_are_left_out(release):
    del release.actors[2]
    release.write_tables()
    clips, left_out = release.build()
    assert [item["row"] for item in left_out] == [name for name in NAMES if name.startswith("1003")]
    assert reasons(left_out) == {"unknown actor": 2}
    assert len(clips) == 10


# --- not CREMA-D


def test_another_folder_is_refused_in_one_line(tmp_path):
    with pytest.raises(
        CorpusError, match=r"is not a CREMA-D folder: it has no .*tabulatedVotes.*git lfs clone"
    ) as caught:
        crema_d.build(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_table_is_named(release):
    (release.root / crema_d.ACTORS_TABLE).unlink()
    with pytest.raises(CorpusError, match=r"is a CREMA-D folder without VideoDemographics\.csv\."):
        release.build()


def test_a_renamed_column_is_named(release):
    path = release.root / crema_d.VOTES_TABLE
    path.write_text(path.read_text().replace("numResponses", "total"))
    with pytest.raises(CorpusError, match=r"numResponses: column is missing; found .*'total'"):
        release.build()


def test_a_copy_of_pointers_only_is_one_error_with_its_cure(release, tmp_path):
    for name in NAMES:
        release.put(f"AudioWAV/{name}.wav", POINTER)
    with pytest.raises(CorpusError, match=r"no clip is usable: 12 x Git-LFS pointer.*git lfs pull"):
        crema_d.prepare(release.root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_too_few_speakers_for_folds_are_refused_before_anything_is_written(release, tmp_path):
    for name in NAMES[6:]:
        (release.root / f"AudioWAV/{name}.wav").unlink()
    with pytest.raises(CorpusError, match="3 speakers cannot fill 5 speaker-disjoint folds"):
        crema_d.prepare(release.root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- again


def test_a_second_run_reuses_the_corpus_until_an_input_changes(release, tmp_path):
    first, reused = crema_d.prepare(release.root, tmp_path)
    assert not reused
    again, reused = crema_d.prepare(release.root, tmp_path)
    assert reused
    assert again == first
    (release.root / f"AudioWAV/{NAMES[0]}.wav").unlink()
    changed, reused = crema_d.prepare(release.root, tmp_path)
    assert not reused
    assert len(changed.clips) == 11
    (tmp_path / "clips.parquet").unlink()
    mended, reused = crema_d.prepare(release.root, tmp_path)
    assert not reused
    assert mended == changed
