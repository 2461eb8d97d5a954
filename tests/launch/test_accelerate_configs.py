"""Every file of accelerate_configs is read by accelerate itself, and the two that need no GPU are really launched."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "accelerate_configs").glob("*.yaml"))

RANKS = """
import torch
from accelerate import Accelerator
accelerator = Accelerator(cpu=True)
total = accelerator.reduce(torch.tensor([accelerator.process_index + 1.0]), reduction="sum").item()
backend = torch.distributed.get_backend()
print(f"rank {accelerator.process_index} of {accelerator.num_processes} {backend} {total}\\n", end="", flush=True)
accelerator.end_training()  # a rank that exits inside its group may abort (launch/cli.py)
"""


def launch(config: str, script: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    command += ["--config_file", str(ROOT / "accelerate_configs" / config), *options, str(script)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def test_the_configs_that_the_docs_name_are_there():
    assert {path.stem for path in CONFIGS} == {"one", "cpu", "ddp", "zero2", "zero3", "fsdp2", "multi_node"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_the_config_and_knows_every_key(path: Path):
    config = load_config_from_file(str(path))  # refuses unknown keys at the top level
    known = set(vars(launch_command_parser().parse_args(["script.py"])))
    nested = {**(config.deepspeed_config or {}), **(config.fsdp_config or {})}
    assert set(nested) <= known, "a nested key that accelerate launch would ignore without a word"


@pytest.mark.parametrize(
    ("name", "kind", "machines"),
    [
        ("one", DistributedType.NO, 1),
        ("cpu", DistributedType.MULTI_GPU, 1),
        ("ddp", DistributedType.MULTI_GPU, 1),
        ("zero2", DistributedType.DEEPSPEED, 1),
        ("zero3", DistributedType.DEEPSPEED, 1),
        ("fsdp2", DistributedType.FSDP, 1),
        ("multi_node", DistributedType.MULTI_GPU, 2),
    ],
)
def test_the_config_is_what_its_name_says(name: str, kind: DistributedType, machines: int):
    config = load_config_from_file(str(ROOT / "accelerate_configs" / f"{name}.yaml"))
    assert (config.distributed_type, config.num_machines) == (kind, machines)
    if name.startswith("zero"):
        assert config.deepspeed_config["zero_stage"] == int(name[-1])
    if name == "fsdp2":
        assert config.fsdp_config["fsdp_version"] == 2


@pytest.mark.distributed
def test_cpu_config_starts_two_ranks_that_add_up_over_gloo(tmp_path: Path):
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    output, _ = launch("cpu.yaml", script).communicate(timeout=300)
    assert "rank 0 of 2 gloo 3.0" in output, output
    assert "rank 1 of 2 gloo 3.0" in output, output


@pytest.mark.distributed
def test_multi_node_config_joins_two_launchers(tmp_path: Path, unused_port: int):
    """Two launchers of one process each on this machine stand for two machines; without a GPU the ranks speak gloo."""
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    address = ["--num_processes", "2", "--main_process_ip", "127.0.0.1", "--main_process_port", str(unused_port)]
    machines = [
        launch("multi_node.yaml", script, *address, "--machine_rank", rank, "--mixed_precision", "no") for rank in "01"
    ]
    outputs = [machine.communicate(timeout=300)[0] for machine in machines]
    assert "rank 0 of 2 gloo 3.0" in outputs[0], outputs
    assert "rank 1 of 2 gloo 3.0" in outputs[1], outputs


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
