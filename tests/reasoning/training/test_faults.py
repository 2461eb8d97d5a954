"""What a GRPO run survives: kill -9 between two rollouts, and a disk that fills up. Both end in the same adapter."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from launch.grpo import main
from reasoning.training.run_folder import last_whole_checkpoint

REPOSITORY = Path(__file__).parents[3]
REWARD = """
import os, shutil, signal
from pathlib import Path

def score(completions, trainer_state, **columns):
    here = Path(__file__).parent
    if trainer_state.global_step == 8:
        if (here / "kill").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        if (here / "fill").exists():
            (here / "disk" / "ballast").write_bytes(bytes(shutil.disk_usage(here / "disk").free - 16_384))
    return [float(len(text) % 7) for text in completions]
"""


def arguments(trained, folder: Path, out: Path) -> list[str]:
    """Ten steps; a rollout serves two of them, an epoch takes four, and the checkpoint of step 6 lies inside one."""
    (folder / "mine.py").write_text(REWARD)
    options = {
        "config": REPOSITORY / "launch" / "configs" / "grpo.yaml", "model_name_or_path": trained.model,
        "data": trained.corpus, "output_dir": out, "rewards": f"{folder}/mine.py:score", "reward_weights": 1,
        "limit": 8, "num_generations": 4, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2,
        "num_iterations": 2, "max_steps": 10, "save_steps": 6, "save_total_limit": 1, "lora_r": 4, "bf16": "false",
        "warmup_steps": 0, "temperature": 1.3, "min_reward_spread": 0.0, "learning_rate": 1e-3, "report_to": "none",
    }  # fmt: skip
    return [part for key, value in options.items() for part in (f"--{key}", str(value))]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def command(given: list[str]) -> list[str]:
    return [sys.executable, "-m", "launch.cli", "grpo", *given]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Adapters are compared bit by bit, and with two threads the same run twice differs in the last one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def uninterrupted(trained_checkpoint, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    main(arguments(trained_checkpoint, folder, folder / "run"))
    return folder / "run"


def test_a_run_that_was_killed_with_signal_9_resumes_from_a_rollout_boundary_to_the_same_adapter(
    uninterrupted, trained_checkpoint, tmp_path
):
    """It dies two steps after its checkpoint, in the fifth rollout: sampled, not yet learned from."""
    (tmp_path / "kill").touch()
    out = tmp_path / "run"
    given = arguments(trained_checkpoint, tmp_path, out)
    died = subprocess.run(command(given), cwd=REPOSITORY, capture_output=True, timeout=900)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()[-2000:]
    assert Path(str(last_whole_checkpoint(out))).name == "checkpoint-6"
    with (out / "metrics.jsonl").open("a") as metrics:  # what a kill in the middle of a write leaves
        metrics.write('{"step": 9, "lo')
    (tmp_path / "kill").unlink()
    main(given)
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if "loss" in line] == list(range(1, 11))
    for step in (7, 9, 10):
        path = Path("completions") / f"completions_{step:05d}.parquet"
        again, before = (pq.read_table(run / path).to_pydict() for run in (out, uninterrupted))
        assert again["clip"] == before["clip"]
        assert again["completion"] == before["completion"]
    assert same(weights(out), weights(uninterrupted))


@pytest.mark.slow
def test_a_disk_that_fills_up_is_one_line_and_costs_no_finished_checkpoint(uninterrupted, trained_checkpoint, tmp_path):
    """A real file system of 32 MiB, filled by someone else before the last checkpoint is written, then freed again."""
    disk = tmp_path / "disk"
    disk.mkdir()
    (tmp_path / "fill").touch()
    mount = f"mount -t tmpfs -o size=32m tmpfs {disk}"
    if subprocess.run(["unshare", "-Urm", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("this machine lets no user mount a file system")
    run = " ".join(command([*arguments(trained_checkpoint, tmp_path, disk / "run"), "--log_completions", "false"]))
    script = f"""
        {mount}
        {run} > {tmp_path}/first.log 2> {tmp_path}/first.err
        echo $? > {tmp_path}/first.rc
        ls {disk}/run > {tmp_path}/left
        rm {disk}/ballast {tmp_path}/fill
        {run} > {tmp_path}/second.log 2>&1
        cp {disk}/run/adapter_model.safetensors {tmp_path}
    """
    subprocess.run(["unshare", "-Urm", "sh", "-c", script], cwd=REPOSITORY, timeout=1200)
    assert (tmp_path / "first.rc").read_text() == "2\n", (tmp_path / "first.err").read_text()[-2000:]
    said = (tmp_path / "first.err").read_text()
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if "equivox:" in line]
    assert line.startswith("equivox:"), "the progress bar has ended its own line"
    assert f"[{disk / 'run'}] cannot be written: No space left on device" in line
    assert "goes on from checkpoint-6" in line
    assert "adapter_model.safetensors" not in (tmp_path / "left").read_text().split()
    assert same(weights(tmp_path), weights(uninterrupted)), (tmp_path / "second.log").read_text()[-2000:]
