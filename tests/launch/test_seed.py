"""The seed command: what it passes on, what it says, and that its help is light."""

from __future__ import annotations

import pytest

from launch import seed as command
from reasoning.models import seed
from reasoning.models.seed import SeedSpec


@pytest.fixture
def asked(monkeypatch) -> list[tuple]:
    calls: list[tuple] = []
    monkeypatch.setattr(seed, "build_seed", lambda *args: calls.append(args) or len(calls) == 1)
    return calls


def test_the_options_reach_the_builder_and_a_second_run_says_it_is_there(asked, tmp_path, capsys):
    out = tmp_path / "seed"
    options = ["--out", str(out), "--whisper", "tiny.en", "--layers", "2", "--seed", "7", "--source", "registry"]
    assert command.main(options) == 0
    assert "is ready" in capsys.readouterr().out
    assert command.main(options) == 0
    assert "is already there" in capsys.readouterr().out
    assert asked == [(out, SeedSpec("tiny.en", 2, 7), "registry")] * 2


def test_the_defaults_are_the_measured_cut_of_whisper_base(asked, tmp_path):
    command.main(["--out", str(tmp_path)])
    assert asked == [(tmp_path, SeedSpec(), "auto")]


def test_an_unknown_whisper_is_a_usage_error(asked, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(["--out", str(tmp_path), "--whisper", "large"])
    assert stopped.value.code == 2
    assert "tiny.en" in capsys.readouterr().err
    assert not asked
