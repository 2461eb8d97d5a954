"""A clone whose `equivox` only writes down how it is called, for the tests of the shell scripts."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from launch import HOME

# Stands for launch/setup.sh: the recorded command first on PATH instead of an environment.
SETUP = """EQUIVOX_HOME="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
export PATH="$EQUIVOX_HOME/bin:$PATH"
"""


@pytest.fixture
def recorded_clone(tmp_path: Path) -> Callable[[str, str], Path]:
    """(name of a script that sources stages.sh, text of the stand-in for `equivox`) -> the clone's folder."""

    def make(script: str, equivox: str) -> Path:
        home = tmp_path / "a clone"
        shutil.copytree(HOME / "launch" / "configs", home / "launch" / "configs")
        for name in (script, "stages.sh"):
            shutil.copy(HOME / "launch" / name, home / "launch")
        (home / "launch" / "setup.sh").write_text(SETUP)
        command = home / "bin" / "equivox"
        command.parent.mkdir()
        command.write_text(equivox)
        command.chmod(command.stat().st_mode | stat.S_IXUSR)
        return home

    return make
