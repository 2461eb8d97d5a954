"""Every YAML in launch/configs is read by its own command, and what is wrong in one is a single clear error."""

import importlib
from pathlib import Path
from typing import Any

import pytest

import launch.arguments
from launch import HOME, cli

CONFIGS = sorted((HOME / "launch" / "configs").glob("*.yaml"))


class Parsed(Exception):
    """Ends a command once its options are read."""


def read(config: Path, command: str, monkeypatch: pytest.MonkeyPatch, *options: str) -> dict[str, Any]:
    """What the command makes of the config: every option by name."""
    real = launch.arguments.parse

    def stop(*args: Any, **kwargs: Any) -> None:
        raise Parsed(real(*args, **kwargs))

    monkeypatch.setattr(launch.arguments, "parse", stop)
    given = ["--config", str(config), "--data", "data/none", *options]
    with pytest.raises(Parsed) as parsed:
        importlib.import_module(f"launch.{command}").main(given)
    return {name: value for part in parsed.value.args[0] for name, value in vars(part).items()}


def test_there_is_a_config_for_every_training_command():
    assert [path.stem for path in CONFIGS] == sorted(
        name for name, command in cli.COMMANDS.items() if command.distributed
    )


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_is_read_by_its_command(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    options = read(path, path.stem, monkeypatch, "--output_dir", str(tmp_path / "out"))
    assert options["data"] == "data/none"
    assert options["use_cpu"] is True
    assert options["seed"] == 7
    assert options["report_to"] == ["tensorboard"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_an_option_on_the_command_line_wins_over_the_config(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options = read(path, path.stem, monkeypatch, "--output_dir", str(tmp_path / "out"), "--seed", "11")
    assert options["seed"] == 11


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("learning_rat: 0.1", ("learning_rat", "learning_rate")),  # unknown, with the nearest known key
        ("lora_r: many", ("lora_r", "many", "int")),
        ("train_projector: 3", ("train_projector", "3", "bool")),
        ("level: maybe", ("level", "maybe", "no_think")),
        ("fold: 9", ("fold", "9")),
        ("- a list", ("key: value",)),
        ("a: b: c", ("not YAML",)),
    ],
)
@pytest.mark.parametrize("command", ["sft", "dpo", "grpo"])
def test_a_wrong_config_is_one_line_that_names_key_and_value(
    command: str, line: str, words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config, out = tmp_path / "wrong.yaml", tmp_path / "out"
    config.write_text(f"{line}\n")
    main = importlib.import_module(f"launch.{command}").main
    with pytest.raises(SystemExit) as exit_:
        cli.run(main, ["--config", str(config), "--data", "data/none", "--output_dir", str(out)])
    error = capsys.readouterr().err
    assert exit_.value.code == 2
    assert error.count("\n") == 1, error
    assert all(word in error for word in words), error
    assert not out.exists(), "something was written before the options were known to be good"


def test_a_weight_of_thinking_without_any_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = ["--data", "data/none", "--output_dir", str(tmp_path / "out"), "--trace_weight", "0.5"]
    with pytest.raises(SystemExit):
        cli.run(importlib.import_module("launch.sft").main, options)
    assert "trace_weight: weighs thinking, and no traces are given" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["sft", "dpo", "grpo"])
def test_a_config_that_is_not_there_is_named(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main = importlib.import_module(f"launch.{command}").main
    with pytest.raises(SystemExit):
        cli.run(main, ["--config", str(tmp_path / "nowhere.yaml")])
    assert "nowhere.yaml" in capsys.readouterr().err
