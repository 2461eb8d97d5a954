"""Traces of a corpus: every clip is written or counted, the file is whole, and it belongs to one corpus."""

from collections.abc import Iterator

import numpy as np
import pytest
import soundfile

from data_builders.rows import Corpus, CorpusInfo, read_corpus, write_corpus
from data_builders.traces.cot import Draft, prepare
from data_builders.traces.template import TOO_LITTLE, TemplateWriter
from data_builders.traces.trace_file import read_trace_rows, read_traces, write_traces
from reasoning.clips import Clip
from reasoning.emotions import CREMA_D
from reasoning.errors import CorpusError
from reasoning.verifier import read_trace


def corpus_in(folder, clips: int) -> Corpus:
    """Two speakers whose clips differ in pitch, level and spectrum; the last clip of each is silent."""
    rows = []
    for speaker in ("one", "two"):
        for i in range(clips):
            rng = np.random.default_rng([i, len(speaker)])
            time = np.arange(9600) / 16_000
            harmonics = range(1, 4 + 2 * (i % 5))
            sound = sum(np.sin(2 * np.pi * k * 100 * 1.05**i * time + rng.uniform(0, 6)) for k in harmonics)
            sound = 0.02 * 1.2 ** (i % 7) * sound / np.abs(sound).max() if i < clips - 1 else 0 * time
            name = f"{speaker}{i}"
            soundfile.write(folder / f"{name}.flac", np.pad(sound, 3200), 16_000)
            votes = tuple(1 + int(v) for v in rng.integers(0, 4, 6))
            rows.append(
                Clip(
                    id=name, audio=f"{name}.flac", duration_s=1.0, transcript="It is there.", language="en",
                    speaker=speaker, sex="female", age=None, split="train", fold=0, votes=votes, n_votes=sum(votes),
                    intended=None, source="synthetic",
                )
            )  # fmt: skip
    info = CorpusInfo("tones", CREMA_D, "CC0", "the tests", "none", "1", {}, {}, [], "tones with made-up votes")
    return write_corpus(folder, rows, info)


@pytest.fixture
def corpus(tmp_path) -> Corpus:
    return corpus_in(tmp_path, 12)


def test_every_clip_is_written_or_counted_and_rejections_have_their_reasons(corpus, tmp_path):
    made = prepare(corpus, tmp_path, TemplateWriter(CREMA_D, 0), progress=False)
    assert len(made.rows) + sum(made.unwritten.values()) == len(corpus.clips) == 24
    assert set(made.unwritten) == {TOO_LITTLE}
    assert not {"one11", "two11"} & {row.id for row in made.rows}, "nothing can be measured in silence"
    assert made.gaps["pitch", "no_speech"] == 2
    assert made.with_others == 0, "eleven clips of each speaker are measured"
    assert all((row.verdict == "rejected") == bool(row.reasons) for row in made.rows)
    assert sum(made.rejected.values()) == sum(len(row.reasons) for row in made.rows)
    assert set(made.rejected) <= {"answer_contradicts"}
    assert made.kept
    assert all(row.writer == "template 2" and not row.saw_votes for row in made.rows)


def test_clips_that_are_compared_with_other_speakers_are_counted(tmp_path):
    few = corpus_in(tmp_path, 8)
    made = prepare(few, tmp_path, TemplateWriter(CREMA_D, 0), progress=False)
    assert made.with_others == 14, "all but the two silent ones"


def test_a_writer_that_was_shown_the_votes_says_so(corpus, tmp_path):
    made = prepare(corpus, tmp_path, TemplateWriter(CREMA_D, 0, saw_votes=True), progress=False)
    assert all(row.saw_votes for row in made.rows)
    assert "listeners" in made.rows[0].thinking


def test_what_a_writer_makes_up_is_rejected_and_what_it_cannot_write_is_counted(corpus, tmp_path):
    class Careless:
        name, saw_votes = "careless", False

        def write(self, clips, cues) -> Iterator[Draft]:
            true = TemplateWriter(CREMA_D, 0).write(clips, cues)
            for i, draft in enumerate(true):
                if i == 0:
                    yield Draft(draft.id, "<html>502</html>")
                elif i == 1:
                    yield Draft(draft.id, None, "timed out")
                elif i == 2:
                    trace = read_trace(draft.thinking or "")
                    assert trace
                    yield Draft(draft.id, (draft.thinking or "").replace(f"Voice: {trace.voice}", "Voice: a sad voice"))
                else:
                    yield draft

    made = prepare(corpus, tmp_path, Careless(), progress=False)
    assert made.rows[0].reasons == ("bad_layout",)
    assert made.unwritten["timed out"] == 1
    assert {"voice_empty", "voice_unread"} <= set(made.rows[1].reasons)


def test_the_file_gives_back_what_was_written_and_only_verified_traces_unless_asked(corpus, tmp_path):
    made = prepare(corpus, tmp_path, TemplateWriter(CREMA_D, 0), progress=False)
    path = tmp_path / "traces.parquet"
    write_traces(path, made.rows, corpus)
    assert tuple(read_trace_rows(path, corpus)) == made.rows
    assert read_traces(path, corpus) == {row.id: row.thinking for row in made.kept}
    assert len(read_traces(path, corpus, unverified=True)) == len(made.rows) > len(made.kept)


def test_traces_of_another_state_of_the_corpus_are_refused(corpus, tmp_path):
    path = tmp_path / "traces.parquet"
    write_traces(path, prepare(corpus, tmp_path, TemplateWriter(CREMA_D, 0), progress=False).rows, corpus)
    (tmp_path / "more").mkdir()
    with pytest.raises(CorpusError, match="another corpus than this tones, or to another state"):
        read_traces(path, corpus_in(tmp_path / "more", 13))
    with pytest.raises(CorpusError, match=r"is no file of traces \(thinking, "):
        read_traces(tmp_path / "clips.parquet", read_corpus(tmp_path))
    with pytest.raises(CorpusError, match="equivox prepare cot"):
        read_traces(tmp_path / "none.parquet", corpus)
