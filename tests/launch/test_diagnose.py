"""equivox diagnose: what it prints and writes."""

from __future__ import annotations

import json

import pytest

from data_builders.rows import read_corpus
from data_builders.traces.trace_file import TraceRow, write_traces
from launch.diagnose import main
from reasoning.errors import ConfigError, CorpusError


def test_the_swaps_are_printed_and_written_with_their_verdict(trained_checkpoint, tmp_path, capsys):
    corpus = read_corpus(trained_checkpoint.corpus)
    traces, out = tmp_path / "traces.parquet", tmp_path / "swaps.json"
    thinking = "Words: plain\nVoice: high pitch\nAmbiguity: anger and fear\nWeighing: high pitch favours anger and fear"
    write_traces(traces, [TraceRow(c.id, thinking, "test", False, "kept", ()) for c in corpus.clips], corpus)
    asked = ["--model", str(trained_checkpoint.model), "--data", str(trained_checkpoint.corpus), "--split", "test"]
    assert main([*asked, "--traces", str(traces), "--out", str(out)]) == 0
    found, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert found["readout"] == "label_teacher_forced"
    assert found["differences"]["other_trace"]["jsd_bits"]["estimate"] == pytest.approx(0, abs=1e-6), (
        "one trace for all"
    )
    assert found["differences"]["other_sound"]["jsd_bits"]["estimate"] > 0.01
    assert found["verdict"] in printed
    assert f"{found['conditions']['own']['jsd_bits']['estimate']:.3f}" in printed
    with pytest.raises(CorpusError, match="equivox prepare cot"):
        main([*asked, "--traces", str(tmp_path / "none.parquet")])
    with pytest.raises(ConfigError, match="--batch-size: is 0, expected at least 1"):
        main([*asked, "--traces", str(traces), "--batch-size", "0"])
