"""What tests of several trainers share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def on_two_ranks() -> Callable[..., subprocess.CompletedProcess[str]]:
    """on_two_ranks(module, options, timeout): the training command under accelerate on two CPU ranks, to its end."""

    def run(module: str, options: Sequence[str], timeout: int) -> subprocess.CompletedProcess[str]:
        config = REPOSITORY / "accelerate_configs" / "cpu.yaml"
        launcher = ["accelerate.commands.accelerate_cli", "launch", "--config_file", config, "--main_process_port", "0"]
        return subprocess.run(
            [sys.executable, "-m", *map(str, launcher), "-m", module, *options],
            cwd=REPOSITORY, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=timeout, capture_output=True, text=True,
        )  # fmt: skip

    return run
