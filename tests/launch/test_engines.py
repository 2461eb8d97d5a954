"""`--engine` from the command line: a server that dies loses nothing, and every engine gives the same scores."""

from __future__ import annotations

import argparse
import json
from typing import cast

import numpy as np
import pytest
import torch
from peft.tuners.lora import LoraLayer

from data_builders.rows import read_corpus
from launch import engines, evaluate
from reasoning.emotions import CREMA_D
from reasoning.errors import ConfigError, EvaluationError
from reasoning.evaluation.predictions import read_predictions
from reasoning.evaluation.record import PREDICTIONS, SCORES, read_record
from reasoning.inference import endpoint
from reasoning.inference.engine import Request
from reasoning.inference.transformers_engine import TransformersEngine
from reasoning.models.loading import add_adapter, load_model
from reasoning.response import write_response


def options(corpus, out, *more: str) -> list[str]:
    return ["--data", str(corpus), "--out", str(out), "--name", "tones", "--report-clips", "2", *more]


@pytest.fixture
def impatient(monkeypatch):
    """Retries that do not wait: the server of these tests stays away."""
    monkeypatch.setattr(endpoint, "LONGEST_WAIT", 0.01)


def test_a_run_on_a_server_that_dies_goes_on_where_it_stopped(http_server, tone_corpus, tmp_path, impatient):
    asked, dead_after = [], 5
    share = np.full(6, 1 / 6)
    words = write_response(share, "sad", CREMA_D)

    def reply(path, body, headers):
        if body is None:
            return 200, '{"data": [{"id": "someones-model"}]}', {}
        if len(asked) >= dead_after:
            return 502, "<html>Bad gateway</html>", {"Content-Type": "text/html"}
        asked.append(body)
        choice = {"message": {"content": words}, "finish_reason": "stop"}
        return 200, json.dumps({"choices": [choice], "usage": {"completion_tokens": 40}}), {}

    out = tmp_path / "run"
    line = options(tone_corpus, out, "--engine", "server", "--url", http_server(reply), "--batch-size", "1",
                   "--readouts", "verbalized", "--controls", "none")  # fmt: skip
    with pytest.raises(EvaluationError, match=r"url: http://127.0.0.1:\d+/v1/chat/completions answers 502 Bad Gateway"):
        evaluate.main(line)
    kept = [x for x in read_predictions(out / PREDICTIONS) if x.system == "tones"]
    assert len(kept) == len(asked) == 5
    dead_after = 99
    assert evaluate.main(line) == 0
    lines = [x for x in read_predictions(out / PREDICTIONS) if x.system == "tones"]
    assert lines[:5] == kept
    assert len(lines) == len(asked) == 6 + 12  # of the dev speakers and of the test speakers, each asked once
    assert all(x.probabilities == pytest.approx(share, abs=0.01) for x in lines)
    assert read_record(out).engine == "server someones-model"
    assert (out / SCORES).is_file()


@pytest.mark.parametrize(
    ("more", "error", "said"),
    [
        ([], ConfigError, "--model: is not given"),
        (["--engine", "vllm"], ConfigError, "--model: is not given"),
        (["--engine", "server", "--adapter", "x"], ConfigError, "--model: is not given"),
        (["--engine", "server", "--url", "localhost:8000"], ConfigError, "is no http address"),
        (["--engine", "server", "--batch-size", "0"], ConfigError, "--batch-size: is 0"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_written(tone_corpus, tmp_path, more, error, said):
    with pytest.raises(error, match=said):
        evaluate.main(options(tone_corpus, tmp_path / "run", *more))
    assert not (tmp_path / "run").exists()


def test_a_dead_server_is_named_with_its_cure_before_anything_is_written(tone_corpus, tmp_path, free_port, impatient):
    line = options(tone_corpus, tmp_path / "run", "--engine", "server", "--url", f"http://127.0.0.1:{free_port}/v1")
    with pytest.raises(EvaluationError, match=rf"127.0.0.1:{free_port}/v1/models does not answer.*equivox serve"):
        evaluate.main(line)
    assert not (tmp_path / "run").exists()


def test_a_server_of_other_weights_is_refused_by_its_name(http_server, trained_checkpoint, tmp_path):
    url = http_server(lambda *_: (200, '{"data": [{"id": "equivox-0123456789ab"}]}', {}))
    wanted = engines.served_name(trained_checkpoint.model, None)
    more = ["--model", str(trained_checkpoint.model), "--engine", "server", "--url", url]
    with pytest.raises(EvaluationError, match=f"serves 'equivox-0123456789ab', asked for is '{wanted}'"):
        evaluate.main(options(trained_checkpoint.corpus, tmp_path / "run", *more))


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize("engine", ["vllm", "server"])
def test_the_scores_are_the_transformers_engines(trained_checkpoint, vllm_server, tmp_path, engine):
    """The same command but for --engine: predictions within 1e-4, texts and scores equal to four digits."""
    lines, scores = {}, {}
    for name, more in (("transformers", []), (engine, ["--engine", engine, "--url", vllm_server.url])):
        out = tmp_path / name
        model = ["--model", str(trained_checkpoint.model), "--controls", "shuffled,text_only", "--no-probe"]
        assert evaluate.main(options(trained_checkpoint.corpus, out, *model, *more)) == 0
        lines[name] = {x.key: x for x in read_predictions(out / PREDICTIONS)}
        scores[name] = json.loads((out / SCORES).read_text())["systems"]
    assert lines[engine].keys() == lines["transformers"].keys()
    for key, line in lines["transformers"].items():
        assert lines[engine][key].text == line.text
        assert lines[engine][key].probabilities == pytest.approx(line.probabilities, abs=1e-4)
    for one, other in zip(scores[engine], scores["transformers"], strict=True):
        for metric in ("jsd_bits", "nll_bits", "brier"):
            own, theirs = one["metrics"][metric]["estimate"], other["metrics"][metric]["estimate"]
            assert own == pytest.approx(theirs, abs=5e-4), (one["key"], metric)


def test_a_merged_adapter_answers_as_the_one_beside_its_base(trained_checkpoint, tmp_path):
    corpus = read_corpus(trained_checkpoint.corpus)
    loaded = add_adapter(load_model(trained_checkpoint.model), r=2, alpha=4, dropout=0.0, train_projector=True)
    noise = torch.Generator().manual_seed(0)
    for name, weight in loaded.model.named_parameters():
        if "lora_" in name:
            weight.data = torch.randn(weight.shape, generator=noise) * 0.1
    loaded.model.save_pretrained(tmp_path)
    clips = [Request(clip.id, corpus.root / clip.audio, clip.transcript) for clip in corpus.clips[:6]]
    parser = argparse.ArgumentParser()
    engines.add_options(parser)
    readouts = {}
    for dtype, is_merged in (("float32", True), ("bfloat16", False)):
        line = ["--model", str(trained_checkpoint.model), "--adapter", str(tmp_path), "--dtype", dtype]
        engine = cast(TransformersEngine, engines.open_engine(parser.parse_args(line), corpus.info.emotions).engine)
        layers = [layer for layer in engine.loaded.model.modules() if isinstance(layer, LoraLayer)]
        assert [layer.merged for layer in layers] == [is_merged] * len(layers)
        assert layers
        readouts[dtype] = [scores.probabilities for scores in engine.score_labels(clips)]
    beside = TransformersEngine(load_model(trained_checkpoint.model, tmp_path), corpus.info.emotions)
    base = TransformersEngine(load_model(trained_checkpoint.model), corpus.info.emotions)
    assert np.allclose(readouts["float32"], [scores.probabilities for scores in beside.score_labels(clips)], atol=1e-5)
    assert not np.allclose(
        readouts["float32"], [scores.probabilities for scores in base.score_labels(clips)], atol=0.01
    )
