"""The command that serves: its address, its name, what it refuses. tests/reasoning/inference asks a served model."""

from __future__ import annotations

import shutil
import socket
import sys
from pathlib import Path

import pytest

from launch import serve
from launch.engines import served_name
from reasoning.errors import ConfigError, ModelError
from reasoning.models.loading import add_adapter, load_model, record_base


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


def test_without_vllm_the_cure_is_named(monkeypatch):
    monkeypatch.setattr("reasoning.inference.local_vllm.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="vLLM is not installed"):
        serve.main(["--model", "models/seed"])


@pytest.mark.vllm
@pytest.mark.slow
def test_a_served_model_has_the_name_of_its_weights_and_is_not_heard_of_elsewhere(vllm_server, trained_checkpoint):
    assert vllm_server.model == served_name(trained_checkpoint.model, None)
    port = int(vllm_server.url.rsplit(":", 1)[1].partition("/")[0])
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    assert f"0100007F:{port:04X}" in listening  # 127.0.0.1, as the kernel writes it
    assert f"00000000:{port:04X}" not in listening
