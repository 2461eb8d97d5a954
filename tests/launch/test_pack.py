"""equivox pack and unpack: the same runs come back, and no vote travels."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_builders.rows import read_corpus, split_clips
from launch.compare import minutes_of
from launch.pack import main as pack
from launch.score import main as score
from launch.unpack import main as unpack
from reasoning.distributions import normalize_votes
from reasoning.emotions import CREMA_D
from reasoning.errors import CorpusError, EvaluationError
from reasoning.evaluation.predictions import Prediction, read_predictions
from reasoning.evaluation.record import RunRecord, read_record
from reasoning.response import write_response


def write_run(folder: Path, corpus, system: str, adapter: Path | None = None) -> Path:
    """A run that is right about every second clip, cannot be read once and is also given other clips' sound."""
    clips = split_clips(corpus, 0)["test"]
    truth = normalize_votes([c.votes for c in clips]).tolist()
    baseline = [(clip, "training_prior", "none", (1 / 6,) * 6, None, ()) for clip in clips]
    lines = [(c, system, "label", (1 / 6,) * 6 if i % 2 else tuple(truth[i]), None, ()) for i, c in enumerate(clips)]
    lines += [
        (c, system, "verbalized", tuple(truth[i]), write_response(truth[i], "sad", CREMA_D), ())
        for i, c in enumerate(clips)
    ]
    lines[-1] = (clips[-1], system, "verbalized", None, "Shares: none", ("no_answer",))
    predictions = [
        Prediction(
            system=name, readout=readout, prefix="no_think" if readout == "label" else None, control="none",
            split="test", id=c.id, speaker=c.speaker, fold=0, transcript=c.transcript, votes=tuple(c.votes),
            probabilities=probabilities, vote="sad", problems=problems, text=text, audio=c.audio,
        )
        for c, name, readout, probabilities, text, problems in [*baseline, *lines]
    ]  # fmt: skip
    donors = {clip.id: other.audio for clip, other in zip(clips, [*clips[1:], clips[0]], strict=True)}
    heard = [p for p in predictions if p.readout == "label"]
    predictions += [replace(p, control="shuffled", audio=donors[p.id]) for p in heard]
    record = RunRecord(
        system=system, corpus=corpus.info.name, statement=corpus.info.statement, rater_task=corpus.info.rater_task,
        corpus_fingerprint=corpus.fingerprint, audio_root=str(corpus.root), emotions=corpus.info.emotions.to_dict(),
        fold=0, folds=5, n_train=1, n_dev=1, n_test=len(clips), limit=None, model="models/seed",
        model_fingerprint="m", adapter=None if adapter is None else str(adapter), adapter_fingerprint=None,
        engine="transformers", level="no_think", prompt_fingerprint="p", max_new_tokens=96, seed=0,
        shuffled={"same_sentence": 1}, fitted={"dirichlet_alpha": [1.0] * 6, "training_prior": [1 / 6] * 6},
    )  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "evaluation.json").write_text(json.dumps(asdict(record)))
    (folder / "predictions.jsonl").write_text("".join(f"{line.to_json()}\n" for line in predictions))
    return folder


@pytest.fixture
def runs(tone_corpus, tmp_path) -> list[Path]:
    corpus = read_corpus(tone_corpus)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "seconds").write_text("90\n")
    return [write_run(tmp_path / "eval_sft", corpus, "sft", adapter), write_run(tmp_path / "eval_grpo", corpus, "a/b")]


def test_what_was_packed_comes_back_line_by_line_in_its_order(runs, tone_corpus, tmp_path):
    packed, back = tmp_path / "fold0.parquet", tmp_path / "back"
    assert pack([*map(str, runs), "--out", str(packed)]) == 0
    assert unpack([str(packed), "--data", str(tone_corpus), "--out", str(back)]) == 0
    folders = [back / "fold0" / "00_sft", back / "fold0" / "01_a_b"]
    for was, now in zip(runs, folders, strict=True):
        assert read_predictions(now / "predictions.jsonl") == read_predictions(was / "predictions.jsonl")
        assert read_record(now) == read_record(was)
    assert minutes_of([read_record(folder) for folder in folders], folders) == {"sft": 1.5}
    assert unpack([str(packed), "--data", str(tone_corpus), "--out", str(back)]) == 0, "again, over itself"


def test_the_file_holds_no_vote_no_sentence_and_no_folder_of_this_machine(runs, tone_corpus, tmp_path):
    packed = tmp_path / "fold0.parquet"
    assert pack([*map(str, runs), "--out", str(packed)]) == 0
    table = pq.read_table(packed)
    assert not {"votes", "transcript", "speaker"} & set(table.column_names)
    told = table.schema.metadata[b"equivox"].decode()
    assert str(tone_corpus) not in told
    assert all(f'"{clip.transcript}"' not in told for clip in read_corpus(tone_corpus).clips if clip.transcript)


def test_unpacked_runs_score_as_the_runs_did(runs, tone_corpus, tmp_path, capsys):
    packed, back = tmp_path / "p.parquet", tmp_path / "back"
    pack([str(runs[0]), "--out", str(packed)])
    unpack([str(packed), "--data", str(tone_corpus), "--out", str(back)])
    for folder, out in ((runs[0], "was"), (back / "p" / "00_sft", "now")):
        assert score([str(folder), "--out", str(tmp_path / out)]) == 0
    was, now = (json.loads((tmp_path / out / "scores.json").read_text()) for out in ("was", "now"))
    assert was == now


def test_a_file_for_another_corpus_or_of_something_else_is_refused(runs, tone_corpus, tmp_path):
    packed = tmp_path / "p.parquet"
    for run in runs:
        record = json.loads((run / "evaluation.json").read_text())
        (run / "evaluation.json").write_text(json.dumps({**record, "corpus_fingerprint": "other"}))
    pack([*map(str, runs), "--out", str(packed)])
    with pytest.raises(EvaluationError, match=r"p\.parquet.*--data: was packed from evaluations of another corpus"):
        unpack([str(packed), "--data", str(tone_corpus), "--out", str(tmp_path / "back")])
    assert not (tmp_path / "back").exists()
    with pytest.raises(CorpusError, match=r"clips\.parquet.*is no file of packed evaluations"):
        unpack([str(tone_corpus / "clips.parquet"), "--data", str(tone_corpus), "--out", str(tmp_path / "back")])
    record = json.loads((runs[0] / "evaluation.json").read_text())
    (runs[0] / "evaluation.json").write_text(json.dumps({**record, "corpus_fingerprint": "third"}))
    with pytest.raises(EvaluationError, match="evaluated on more than one corpus"):
        pack([*map(str, runs), "--out", str(packed)])


def test_a_file_of_another_version_is_refused_by_the_fields_that_differ(runs, tone_corpus, tmp_path):
    packed = tmp_path / "p.parquet"
    pack([*map(str, runs), "--out", str(packed)])
    table = pq.read_table(packed)
    told = {key: value.replace(b"rater_task", b"rater_job") for key, value in table.schema.metadata.items()}
    pq.write_table(table.replace_schema_metadata(told), packed)
    with pytest.raises(EvaluationError, match=r"p\.parquet.*not the record of an evaluation \(rater_job, rater_task\)"):
        unpack([str(packed), "--data", str(tone_corpus), "--out", str(tmp_path / "back")])
