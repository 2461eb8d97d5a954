import json

import pytest

from launch import evaluate, score
from reasoning.errors import CorpusError, EvaluationError, ModelError
from reasoning.evaluation.predictions import read_predictions
from reasoning.evaluation.record import PREDICTIONS, REPORT, SCORES


def options(checkpoint, out, *more: str) -> list[str]:
    return ["--model", str(checkpoint.model), "--data", str(checkpoint.corpus), "--out", str(out), "--name", "tones",
            "--report-clips", "2", *more]  # fmt: skip


@pytest.fixture(scope="module")
def run(trained_checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluated") / "run"
    assert evaluate.main(options(trained_checkpoint, out)) == 0
    return out


def estimate(scores: dict, key: str, metric: str = "jsd_bits") -> float:
    return next(s for s in scores["systems"] if s["key"] == key)["metrics"][metric]["estimate"]


def test_a_trained_model_is_scored_from_audio_to_report_and_hears_its_audio(run):
    scores = json.loads((run / SCORES).read_text())
    own = estimate(scores, "tones/label/none")
    assert own < estimate(scores, "training_prior/none/none") - 0.1
    for control in ("shuffled", "silence", "text_only"):
        assert own < estimate(scores, f"tones/label/{control}") - 0.1
    assert estimate(scores, "linear_probe/none/none") < estimate(scores, "training_prior/none/none")
    assert scores["protocol"]["statement"] == "tones with made-up votes"
    assert (run / REPORT).stat().st_size > 1000


def test_every_answer_of_the_model_keeps_its_words_or_its_problem(run):
    lines = [x for x in read_predictions(run / PREDICTIONS) if x.readout == "verbalized"]
    assert len(lines) == 12
    for line in lines:
        assert line.text
        assert (line.probabilities is None) == bool(line.problems)


def test_the_same_command_again_asks_nothing_and_another_adapter_or_level_is_refused(run, trained_checkpoint):
    before = (run / PREDICTIONS).read_bytes(), (run / SCORES).read_bytes()
    assert evaluate.main(options(trained_checkpoint, run)) == 0
    assert ((run / PREDICTIONS).read_bytes(), (run / SCORES).read_bytes()) == before
    with pytest.raises(EvaluationError, match="level was 'no_think', is 'think'"):
        evaluate.main(options(trained_checkpoint, run, "--level", "think"))


def test_controls_of_a_run_without_labels_are_asked_by_its_own_readout(trained_checkpoint, tmp_path):
    out = tmp_path / "run"
    assert evaluate.main(options(trained_checkpoint, out, "--readouts", "verbalized", "--limit", "2")) == 0
    asked = {(x.control, x.split) for x in read_predictions(out / PREDICTIONS) if x.readout == "verbalized"}
    assert asked == {*((control, "test") for control in ("none", "shuffled", "silence", "text_only")), ("none", "dev")}
    scores = json.loads((out / SCORES).read_text())
    assert estimate(scores, "tones/verbalized/shuffled") > estimate(scores, "tones/verbalized/none")


def test_two_folds_are_pooled_and_written_into_a_table(run, trained_checkpoint, tmp_path, capsys):
    second = tmp_path / "fold1"
    more = ["--fold", "1", "--readouts", "label,verbalized", "--limit", "99"]
    assert evaluate.main(options(trained_checkpoint, second, *more)) == 0
    readme = tmp_path / "README.md"
    readme.write_text("<!-- results -->\n<!-- end -->\n")
    assert score.main([str(run), str(second), "--out", str(tmp_path / "all"), "--markdown", str(readme)]) == 0
    scores = json.loads((tmp_path / "all" / SCORES).read_text())
    assert scores["protocol"]["n_clips"] == 24
    assert scores["protocol"]["folds"] == "0, 1 of 5"
    assert "| tones label |" in readme.read_text()
    assert "24 test clips of 4 speakers" in capsys.readouterr().out


def test_bad_arguments_leave_nothing_behind(trained_checkpoint, tmp_path):
    out = tmp_path / "run"
    for more, error, message in (
        (["--readouts", "labels"], EvaluationError, "'labels' is none of"),
        (["--controls", "noise"], EvaluationError, "'noise' is none of"),
        (["--fold", "7"], CorpusError, "fold 7 of 5"),
        (["--limit", "0"], EvaluationError, "limit: is 0"),
        (["--adapter", str(tmp_path)], ModelError, "is not an adapter folder"),
        (["--data", str(tmp_path)], CorpusError, "no corpus.json"),
        (["--model", str(tmp_path)], ModelError, "is not a checkpoint folder"),
    ):
        with pytest.raises(error, match=message):
            evaluate.main(options(trained_checkpoint, out, *more))
        assert not out.exists()
