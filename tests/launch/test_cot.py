"""equivox prepare cot: what it prints and writes, that it is repeatable, and what it refuses."""

import json

import pyarrow.parquet as pq
import pytest

from data_builders.rows import read_corpus
from data_builders.traces.trace_file import TraceRow, read_trace_rows, read_traces, write_traces
from launch.arguments import DataArguments
from launch.prepare import main
from launch.training import training_rows, with_thinking
from reasoning.errors import ConfigError, EvaluationError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studio")
    assert main(["studio", "--out", str(folder), "--clips", "24"]) == 0
    return folder


def test_verified_traces_are_written_and_counted_and_a_second_run_writes_the_same(corpus, tmp_path, capsys):
    argv = ["cot", "--data", str(corpus), "--out", str(tmp_path / "traces.parquet"), "--workers", "1", "--show", "2"]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    rows = read_trace_rows(tmp_path / "traces.parquet", read_corpus(corpus))
    assert rows
    assert {row.verdict for row in rows} == {"kept"}
    assert f"kept          {len(rows)} of 24" in printed
    assert "the writer did not see the votes" in printed
    assert printed.count("\nWeighing: ") == 2
    before = (tmp_path / "traces.parquet").read_bytes()
    assert main(argv) == 0
    assert (tmp_path / "traces.parquet").read_bytes() == before


def test_unverified_traces_are_written_only_when_asked(corpus, tmp_path, capsys):
    out = tmp_path / "traces.parquet"
    argv = ["cot", "--data", str(corpus), "--out", str(out), "--workers", "1", "--show", "0"]
    assert main([*argv, "--keep-unverified"]) == 0
    rows = read_trace_rows(out, read_corpus(corpus))
    rejected = [row for row in rows if row.verdict == "rejected"]
    assert rejected
    assert f"{len(rejected)} of them unverified" in capsys.readouterr().out
    assert len(read_traces(out, read_corpus(corpus))) == len(rows) - len(rejected)
    assert main([*argv, "--show-votes"]) == 0
    assert all(pq.read_table(out)["saw_votes"].to_pylist())


def test_a_teacher_writes_and_nonsense_is_rejected_by_reason(corpus, tmp_path, http_server, capsys):
    def reply(path, body, headers):
        if path == "/v1/models":
            return 200, '{"data": [{"id": "sage"}]}', {}
        assert body["model"] == "sage"
        return 200, json.dumps({"choices": [{"message": {"content": "It sounds sad, 80%."}}]}), {}

    out = tmp_path / "new" / "traces.parquet"
    argv = ["cot", "--data", str(corpus), "--out", str(out), "--workers", "1", "--teacher", http_server(reply)]
    assert main([*argv, "--teacher-model", "sage", "--keep-unverified"]) == 0
    printed = capsys.readouterr().out
    assert "traces by teacher sage" in printed
    assert "24 bad_layout: not four lines" in printed
    assert "kept          0 of 24" in printed
    rows = read_trace_rows(out, read_corpus(corpus))
    assert {(row.writer, row.verdict, row.reasons) for row in rows} == {("teacher sage", "rejected", ("bad_layout",))}


def test_clips_that_were_compared_with_other_speakers_are_counted(corpus, tmp_path, capsys):
    clips = read_corpus(corpus).clips
    main(["cot", "--data", str(corpus), "--out", str(tmp_path / "t.parquet"), "--workers", "1", "--show", "0"])
    assert len({clip.speaker for clip in clips}) > 2, "so that none has the ten clips of its own"
    assert f"compared      {len(clips)} clips with other speakers too" in capsys.readouterr().out


def test_training_says_who_wrote_its_traces_and_whether_they_saw_the_votes(corpus, tmp_path, capsys):
    data = DataArguments(data=str(corpus), level="think")
    read, rows = training_rows(data)
    file = tmp_path / "traces.parquet"
    writers = [("sage", True, "kept"), ("template 2", False, "kept"), ("nobody", True, "rejected")]
    write_traces(file, [TraceRow(r["id"], "", *who, ()) for r, who in zip(rows, writers, strict=False)], read)
    assert len(with_thinking(rows, read, "think", str(file))) == 2
    printed = capsys.readouterr().out
    assert f"2 of {len(rows)} training clips have a verified trace" in printed
    assert "traces by sage (the writer saw the votes), template 2 (the writer did not see the votes)\n" in printed


def test_a_teacher_without_a_name_or_a_server_is_one_error(corpus, tmp_path, free_port):
    argv = ["cot", "--data", str(corpus), "--out", str(tmp_path / "t"), "--workers", "1"]
    with pytest.raises(ConfigError, match="--teacher-model"):
        main([*argv, "--teacher"])
    with pytest.raises(EvaluationError, match="does not answer"):
        main([*argv, "--teacher", f"http://127.0.0.1:{free_port}/v1", "--teacher-model", "sage"])


def test_impossible_options_are_refused(corpus, tmp_path):
    with pytest.raises(ConfigError, match="--workers"):
        main(["cot", "--data", str(corpus), "--out", str(tmp_path / "t"), "--workers", "0"])
