"""The command that serves: its address, its name, what it refuses. tests/reasoning/inference asks a served model."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from pathlib import Path

import pytest

from launch import serve
from launch.engines import served_name
from reasoning.errors import ConfigError, ModelError
from reasoning.models.loading import add_adapter, load_model, record_base
from reasoning.rollouts.adapters import adapter_name
from reasoning.rollouts.worker_extension import FOLDER_VARIABLE


@pytest.fixture(scope="module")
def adapter(untrained_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    loaded = add_adapter(load_model(untrained_checkpoint), r=2, alpha=4, dropout=0.0, train_projector=False)
    loaded.model.save_pretrained(folder)
    record_base(folder, loaded)
    return folder


def command(checkpoint, *options):
    args, more = serve.parser().parse_known_args(["--model", str(checkpoint), *options])
    line = serve.vllm_command(args, checkpoint, more, eager=True)
    assert line[0] == sys.executable
    return line


def option(line, name):
    return line[len(line) - line[::-1].index(name)]  # the last one counts, as it does for argparse


def test_it_listens_to_this_machine_only_unless_told_otherwise(untrained_checkpoint):
    assert option(command(untrained_checkpoint), "--host") == "127.0.0.1"
    assert option(command(untrained_checkpoint, "--host", "0.0.0.0"), "--host") == "0.0.0.0"


def test_options_of_vllm_follow_ours_so_that_they_win(untrained_checkpoint):
    line = command(untrained_checkpoint, "--generation-config", "auto", "--tensor-parallel-size", "2")
    assert option(command(untrained_checkpoint), "--generation-config") == "vllm"
    assert option(line, "--generation-config") == "auto"
    assert option(line, "--tensor-parallel-size") == "2"


def test_the_name_tells_base_and_adapter_apart_and_not_where_they_lie(untrained_checkpoint, adapter, tmp_path):
    moved = shutil.copytree(untrained_checkpoint, tmp_path / "moved")
    assert served_name(moved, None) == served_name(untrained_checkpoint, None)
    assert option(command(moved), "--served-model-name") == served_name(moved, None)
    with_adapter = served_name(untrained_checkpoint, adapter)
    assert with_adapter.startswith(served_name(untrained_checkpoint, None) + "-")
    shutil.copy(adapter / "adapter_config.json", tmp_path)
    with pytest.raises(ModelError, match="is not an adapter folder"):
        served_name(untrained_checkpoint, tmp_path)


def test_a_taken_port_is_refused_before_anything_is_loaded(monkeypatch, tmp_path):
    monkeypatch.setattr("reasoning.inference.local_vllm.find_spec", lambda name: object())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(ConfigError, match=rf"--port: cannot listen on 127.0.0.1:{port}: Address already in use"):
            serve.main(["--model", str(tmp_path / "nothing"), "--port", port])


@pytest.fixture
def rollouts(monkeypatch, untrained_checkpoint, tmp_path):
    """The arguments of a server for training, prepared; the environment is put back afterwards."""
    monkeypatch.setenv(FOLDER_VARIABLE, "")
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "0")

    def prepare(*options):
        line = ["--model", str(untrained_checkpoint), "--rollouts", str(tmp_path / "in" / "folder"), *options]
        args, _ = serve.parser().parse_known_args(line)
        serve.prepare_rollouts(args)
        return args

    return prepare


def test_a_server_for_training_takes_weights_from_a_folder_of_this_user_alone(rollouts, tmp_path):
    args = rollouts()
    folder = tmp_path / "in" / "folder"
    assert os.environ[FOLDER_VARIABLE] == str(folder)
    assert os.environ["VLLM_SERVER_DEV_MODE"] == "1"
    assert folder.stat().st_mode & 0o077 == 0
    line = serve.vllm_command(args, args.model, [], eager=True)
    assert option(line, "--worker-extension-cls") == "reasoning.rollouts.worker_extension.WeightReceiver"
    assert "--worker-extension-cls" not in command(args.model)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "example.org"])
def test_a_server_for_training_listens_to_no_other_machine(rollouts, host):
    with pytest.raises(ConfigError, match=rf"--host: is {host}, but with --rollouts whoever reaches"):
        rollouts("--host", host)
    assert rollouts("--host", "::1").host == "::1"


def test_a_server_for_training_starts_from_the_base(rollouts, adapter):
    with pytest.raises(ConfigError, match="--adapter: cannot be served with --rollouts"):
        rollouts("--adapter", str(adapter))


@pytest.mark.vllm
def test_a_training_may_send_its_adapter_where_vllm_has_lora_for_the_model(
    rollouts, untrained_flamingo, untrained_checkpoint, capsys
):
    def options(model, *more):
        args = rollouts("--model", str(model), *more)
        return args, serve.for_adapters(args, args.model)

    args, line = options(untrained_flamingo)
    assert option(line, "--max-lora-rank") == "64"
    name, _, blank = option(line, "--lora-modules").partition("=")
    assert name == adapter_name(served_name(untrained_flamingo, None))
    assert Path(blank) == args.rollouts / "blank"
    assert (Path(blank) / "adapter_model.safetensors").is_file()
    assert "as it is, up to rank 64" in capsys.readouterr().err
    assert option(options(untrained_flamingo, "--max-lora-rank", "9")[1], "--max-lora-rank") == "16"
    for model, more in ((untrained_flamingo, ("--max-lora-rank", "0")), (untrained_checkpoint, ())):
        assert options(model, *more)[1] == []
        assert "will send merged weights" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="--max-lora-rank: is 513, vLLM takes 1 to 512"):
        options(untrained_flamingo, "--max-lora-rank", "513")


def test_without_vllm_the_cure_is_named(monkeypatch):
    monkeypatch.setattr("reasoning.inference.local_vllm.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="vLLM is not installed"):
        serve.main(["--model", "models/seed"])


@pytest.mark.vllm
@pytest.mark.slow
def test_a_served_model_has_the_name_of_its_weights_and_is_not_heard_of_elsewhere(vllm_server, trained_checkpoint):
    assert vllm_server.model == served_name(trained_checkpoint.model, None)
    port = vllm_server.port
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    assert f"0100007F:{port:04X}" in listening  # 127.0.0.1, as the kernel writes it
    assert f"00000000:{port:04X}" not in listening
