"""equivox prepare: what it prints, that it is repeatable, and that a bad folder is one line and status 2."""

import subprocess
import sys

import pytest

from launch.prepare import main


def test_crema_d_prints_what_is_there_and_what_is_missing_and_is_reused(shared_crema_d, tmp_path, capsys):
    argv = ["crema_d", "--root", str(shared_crema_d), "--out", str(tmp_path)]
    assert main(argv) == 0
    first = capsys.readouterr().out
    assert "human voice-only votes" in first
    assert "no audio file: 1001_IEO_NEU_XX" in first
    assert "left_out.tsv" in first
    assert "x real time" in first
    assert f"--data {tmp_path}" in first.splitlines()[-1]
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert main(argv) == 0
    assert "already prepared, reused" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_studio_says_what_it_is_on_its_first_line(tmp_path, capsys):
    assert main(["studio", "--out", str(tmp_path), "--clips", "5", "--seed", "3"]) == 0
    first, second = capsys.readouterr().out.splitlines()[:2]
    assert first == "studio: synthetic speech, simulated raters"
    assert "5 by 5 speakers" in second
    assert main(["studio", "--out", str(tmp_path), "--clips", "5", "--seed", "3"]) == 0
    assert "already prepared, reused" in capsys.readouterr().out


def test_a_folder_that_is_no_corpus_is_one_line_and_status_2(tmp_path):
    argv = [sys.executable, "-m", "launch.prepare", "crema_d", "--root", str(tmp_path), "--out", str(tmp_path / "out")]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "is not a CREMA-D folder" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("argv", [["--help"], ["crema_d", "--help"], ["studio", "--help"]])
def test_help_is_there_for_every_corpus(argv, capsys):
    with pytest.raises(SystemExit) as done:
        main(argv)
    assert done.value.code == 0
    assert "usage: equivox prepare" in capsys.readouterr().out
