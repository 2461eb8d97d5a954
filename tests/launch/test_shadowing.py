"""Another package of the same name must be refused with its path, not trained with."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch import HOME, SIBLINGS


def import_launch(python_path: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(python_path)}
    command = [sys.executable, "-c", "import launch; print(launch.__file__)"]
    return subprocess.run(command, capture_output=True, text=True, cwd="/", env=environment)


@pytest.mark.parametrize("name", SIBLINGS)
@pytest.mark.parametrize("kind", ["file", "package", "folder"])
def test_a_shadowing_module_is_named(tmp_path: Path, name: str, kind: str):
    """A folder without Python in it counts: sys.path wins against an editable install even as a namespace package."""
    shadow = {"file": tmp_path / f"{name}.py", "package": tmp_path / name / "__init__.py", "folder": tmp_path / name}[
        kind
    ]
    if kind == "folder":
        shadow.mkdir()
    else:
        shadow.parent.mkdir(exist_ok=True)
        shadow.write_text("raise SystemExit('the shadow was run')")
    done = import_launch(tmp_path)
    assert done.returncode == 1
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("ImportError")
    assert f"would load {shadow} instead of {HOME / name}" in message


def test_without_a_shadow_launch_is_imported_from_anywhere(tmp_path: Path):
    done = import_launch(tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, str(HOME / "launch" / "__init__.py")), done.stderr
