"""equivox predict: what it prints for a person and for a program, and that every bad input is one line and status 2."""

import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from launch.predict import as_text, main, predict
from reasoning.emotions import CREMA_D
from reasoning.errors import AudioError, ConfigError, ModelError
from reasoning.inference.engine import Generation, LabelScores, Request
from reasoning.models.loading import add_adapter, load_model, record_base
from reasoning.response import write_response

LABEL = (0.5, 0.1, 0.1, 0.1, 0.1, 0.1)
SHARES = (0.25, 0.0, 0.0, 0.0, 0.5, 0.25)


class Scripted:
    """An engine whose answers are given."""

    name = "scripted"

    def __init__(self, text: str, truncated: bool = False) -> None:
        self.text, self.truncated = text, truncated

    def generate(self, requests, *, max_new_tokens, temperature=0.0, seed=0):
        for request in requests:
            yield Generation(request.id, self.text, len(self.text), self.truncated)

    def score_labels(self, requests):
        for request in requests:
            yield LabelScores(request.id, LABEL, "no_think")


def answer(text: str, truncated: bool = False):
    request = Request("clip.wav", np.zeros(24000, np.float32), "It's eleven o'clock")
    return next(predict(Scripted(text, truncated), [request], CREMA_D, 96))


@pytest.fixture
def tone(tmp_path):
    path = tmp_path / "tone.wav"
    soundfile.write(path, 0.3 * np.sin(np.arange(16000) / 10), 16000)
    return path


def test_both_readouts_are_given_in_the_order_of_the_emotions():
    found = answer(write_response(SHARES, "neutral", CREMA_D))
    assert found.label == dict(zip(CREMA_D.names, LABEL, strict=True))
    assert found.verbalized == dict(zip(CREMA_D.names, SHARES, strict=True))
    assert (found.vote, found.problems, found.duration_s) == ("neutral", (), 1.5)
    assert found.label_entropy_bits == pytest.approx(2.161, abs=1e-3)


def test_the_text_shows_bars_for_both_and_the_answer():
    lines = as_text(answer(write_response(SHARES, "neutral", CREMA_D))).splitlines()
    assert lines[0] == "clip.wav  1.5 s  \"It's eleven o'clock\""
    anger, neutral = lines[2], lines[6]
    assert anger.split()[0] == "anger"
    assert anger.count("█") + anger.count("#") == 10 + 5
    assert neutral.split()[-1] == "0.500"
    assert "problems: none" in lines
    assert lines[-1].endswith("sad 0.25</answer>")


def test_an_unusable_answer_is_said_to_be_one_and_shown():
    found = answer("<answer>Vote: sad", truncated=True)
    assert found.verbalized is None
    assert found.problems == ("truncated",)
    text = as_text(found)
    assert "verbalized: no usable answer" in text
    assert "problems: truncated" in text
    assert "  <answer>Vote: sad" in text


def test_a_model_cannot_write_to_the_terminal_beyond_its_answer():
    text = as_text(answer("\x1b]0;owned\x07\x1b[2J"))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\\x1b[2J" in text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "does not exist"),
        (b"RIFF nothing of the kind", "cannot be decoded"),
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git-LFS pointer"),
    ],
)
def test_a_bad_file_is_one_line_and_status_2_before_any_model_is_loaded(tmp_path, content, said):
    path = tmp_path / "bad.wav"
    if content is not None:
        path.write_bytes(content)
    argv = [sys.executable, "-m", "launch.predict", str(path), "--model", str(tmp_path / "no model")]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert "bad.wav" in done.stderr


def test_one_bad_file_among_good_ones_is_named(tone, tmp_path):
    with pytest.raises(AudioError, match=r"other\.wav"):
        main([str(tone), str(tmp_path / "other.wav"), "--model", str(tmp_path)])


def test_one_transcript_cannot_serve_several_files(tone, tmp_path):
    with pytest.raises(ConfigError, match="is one text for 2 files"):
        main([str(tone), str(tone), "--transcript", "words", "--model", str(tmp_path)])


def test_no_room_for_an_answer_is_refused(tone, tmp_path):
    with pytest.raises(ConfigError, match="expected at least 1"):
        main([str(tone), "--max-new-tokens", "0", "--model", str(tmp_path)])


@pytest.mark.parametrize("options", [[], ["--engine", "vllm"], ["--engine", "server", "--adapter", "runs/grpo"]])
def test_without_a_model_there_is_nothing_to_ask(tone, options):
    with pytest.raises(ConfigError, match="--model: is not given"):
        main([str(tone), *options])


def test_a_folder_that_is_no_checkpoint_is_refused(tone, tmp_path):
    with pytest.raises(ModelError, match="is not a checkpoint folder"):
        main([str(tone), "--model", str(tmp_path)])


def run_json(capsys, *argv) -> list[dict]:
    assert main([str(a) for a in [*argv, "--json"]]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_prediction_follows_the_sound_of_the_file(trained_checkpoint, capsys):
    files = [trained_checkpoint.corpus / f"s0_{emotion}.flac" for emotion in ("happy", "sad")]
    heard = [run_json(capsys, file, "--model", trained_checkpoint.model, "--transcript", "a tone")[0] for file in files]
    # The trained tones put about 3/4 of the votes on their own emotion: a deaf model gives both the same shares.
    assert heard[0]["label"]["happy"] - heard[1]["label"]["happy"] > 0.4
    assert heard[1]["label"]["sad"] - heard[0]["label"]["sad"] > 0.4
    for file, found in zip(files, heard, strict=True):
        assert found["file"] == str(file)
        assert sum(found["label"].values()) == pytest.approx(1, abs=1e-3)
        assert (found["verbalized"] is None) == bool(found["problems"])


def test_several_files_give_a_line_each_in_their_order(trained_checkpoint, capsys):
    files = [trained_checkpoint.corpus / f"s{i}_fear.flac" for i in (2, 0, 1)]
    found = run_json(capsys, *files, "--model", trained_checkpoint.model)
    assert [line["file"] for line in found] == [str(file) for file in files]
    assert {line["transcript"] for line in found} == {None}


def test_an_adapter_of_another_base_is_refused(trained_checkpoint, untrained_checkpoint, tone, tmp_path):
    other = load_model(untrained_checkpoint)
    adapted = add_adapter(other, r=2, alpha=4, dropout=0.0, train_projector=False)
    adapted.model.save_pretrained(tmp_path / "adapter")
    record_base(tmp_path / "adapter", other)
    with pytest.raises(ModelError, match=r"was trained on .*whose weights differ"):
        main([str(tone), "--model", str(trained_checkpoint.model), "--adapter", str(tmp_path / "adapter")])


def test_a_missing_adapter_is_refused(trained_checkpoint, tone, tmp_path):
    with pytest.raises(ModelError, match="is not an adapter folder"):
        main([str(tone), "--model", str(trained_checkpoint.model), "--adapter", str(tmp_path / "none")])
