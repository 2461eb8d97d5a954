"""The console command teaches, dispatches, and turns every EquivoxError into one line and status 2."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from launch import HOME, cli
from reasoning.errors import ConfigError, RowError


def equivox(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "launch.cli", *arguments], capture_output=True, text=True, timeout=120)


def test_help_teaches_every_command_in_the_order_of_use():
    text = equivox("--help").stdout
    places = [text.index(f"$ equivox {name} ") for name in ("prepare", "seed", "sft", "grpo", "evaluate", "score")]
    assert places == sorted(places)
    assert [line for line in text.splitlines() if len(line) > 120] == []


def test_help_without_arguments_is_the_same_help():
    assert equivox().stdout == equivox("--help").stdout


def test_a_command_for_every_file_and_a_file_for_every_command():
    files = {path.stem for path in (HOME / "launch").glob("*.py") if "def main(argv" in path.read_text()}
    assert files - {"cli"} == set(cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_explains_itself(name: str):
    done = equivox(name, "--help")
    assert done.returncode == 0, done.stderr
    assert f"equivox {name}" in done.stdout


def test_version_is_the_distributions_own():
    assert equivox("--version").stdout == "equivox 0.1.0\n"


def test_a_mistyped_command_is_one_line_with_the_nearest_one():
    done = equivox("evalute")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "evalute" in done.stderr
    assert "equivox evaluate" in done.stderr
    assert done.stdout == ""


def test_the_dispatcher_is_light():
    """`equivox --help` must not wait for torch."""
    code = "import sys, launch.cli; print([m for m in ('torch', 'transformers', 'pyarrow') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_an_equivox_error_is_one_line_on_stderr_and_status_2(capsys: pytest.CaptureFixture[str]):
    def fails(argv: list[str] | None) -> int:
        raise RowError("3 votes, but n_votes is 4", row="1001_DFA_ANG_XX", field="votes", cure="equivox prepare again")

    with pytest.raises(SystemExit) as exit_:
        cli.run(fails)
    assert exit_.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert all(part in captured.err for part in ("1001_DFA_ANG_XX", "votes", "n_votes is 4", "equivox prepare again"))


def test_any_other_error_keeps_its_traceback():
    def fails(argv: list[str] | None) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cli.run(fails)


def test_the_command_gets_what_follows_its_name_and_its_status_is_returned(monkeypatch: pytest.MonkeyPatch):
    got = []
    monkeypatch.setitem(sys.modules, "launch.seed", SimpleNamespace(main=lambda argv: got.append(argv) or 3))
    assert cli.dispatch(["seed", "--out", "models/seed"]) == 3
    assert got == [["--out", "models/seed"]]


def test_config_file_becomes_accelerate_launch(monkeypatch: pytest.MonkeyPatch):
    class Replaced(Exception):
        pass

    def execv(program: str, arguments: list[str]) -> None:
        raise Replaced(program, arguments)

    monkeypatch.setattr(cli.os, "execv", execv)
    config = str(HOME / "accelerate_configs" / "cpu.yaml")
    with pytest.raises(Replaced) as replaced:
        cli.dispatch(["sft", "--config_file", config, "--config", "launch/configs/sft.yaml", "--fold", "1"])
    program, arguments = replaced.value.args
    assert program == sys.executable
    assert arguments[1:] == [
        *("-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", config, "-m", "launch.sft"),
        *("--config", "launch/configs/sft.yaml", "--fold", "1"),
    ]


@pytest.mark.parametrize("arguments", [["--config_file"], ["--config_file", "nowhere.yaml"], ["--config_file=no.yaml"]])
def test_a_config_file_that_is_not_there_is_refused(arguments: list[str]):
    with pytest.raises(ConfigError, match="accelerate_configs"):
        cli.dispatch(["grpo", *arguments])


def test_a_rank_leaves_its_group_before_it_exits(tmp_path: Path):
    """Gloo's threads may abort a process that exits inside a group: then the launcher calls a finished run failed."""
    import torch.distributed as dist

    def trains(argv: list[str] | None) -> int:
        dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'ranks'}", rank=0, world_size=1)
        return 0

    with pytest.raises(SystemExit) as exit_:
        cli.run(trains)
    assert (exit_.value.code, dist.is_initialized()) == (0, False)
