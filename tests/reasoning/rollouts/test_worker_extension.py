"""What a server's worker reads: whole tensors of its own checkpoint, from its own folder, and nothing else."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from reasoning.errors import ModelError
from reasoning.rollouts.receiving import checksum
from reasoning.rollouts.worker_extension import TensorFiles, WeightReceiver, watched


@pytest.fixture
def worker(folder, untrained_checkpoint):
    """A receiver beside a runner that knows its checkpoint and has no model to load into: it may only refuse."""
    receiver = WeightReceiver()
    config = SimpleNamespace(model=str(untrained_checkpoint), dtype=torch.float32)
    receiver.model_runner = SimpleNamespace(model_config=config)
    receiver.vllm_config = SimpleNamespace(lora_config=None)
    return receiver


def test_it_reports_its_folder_its_number_type_and_that_the_weights_are_the_checkpoints(worker, folder):
    report = worker.report_weights()
    ours = {"boot": report["boot"], "held": None, "folder": str(folder)}
    assert report == {**ours, "dtype": "float32", "lora_rank": 0}
    worker.vllm_config.lora_config = SimpleNamespace(max_lora_rank=16)
    assert worker.report_weights()["lora_rank"] == 16


def test_only_plain_files_right_in_the_folder_are_read(folder, tmp_path):
    save_file({"a": torch.zeros(1)}, folder / "in.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "out.safetensors")
    (folder / "deep").mkdir()
    save_file({"a": torch.zeros(1)}, folder / "deep" / "in.safetensors")
    (folder / "link").symlink_to(tmp_path / "out.safetensors")
    assert watched(folder, ["in.safetensors"]) == [folder / "in.safetensors"]
    outside = str(tmp_path / "out.safetensors")
    for name in (outside, "../out.safetensors", "deep/in.safetensors", "link", "deep", "..", "", "gone"):
        with pytest.raises(ModelError, match=rf"is no file in {folder}, the only folder"):
            watched(folder, ["in.safetensors", name])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda name, t: {"model.no_such": t}, r"\[model.no_such\] weights: is no weight of the served checkpoint"),
        (lambda name, t: {name: t[:1]}, r"has shape \(1, \d+\), in the served checkpoint it has \(\d+, \d+\)"),
        (
            lambda name, t: {"no_such.lora_A.weight": t},
            r"\[no_such.lora_A.weight\] weights: is no weight of the served",
        ),
        (
            lambda name, t: {name.removesuffix(".weight") + ".lora_B.weight": t[:1]},
            r"lora_B.weight\] weights: has shape \(1, \d+\), in the served checkpoint it has \(\d+, \d+\)",
        ),
    ],
    ids=["unknown", "other shape", "matrix of no weight", "matrix of another shape"],
)
def test_a_tensor_that_does_not_fit_is_refused_by_name(worker, folder, untrained_checkpoint, change, said):
    name, tensor = next((n, t) for n, t in load_file(untrained_checkpoint / "model.safetensors").items() if t.ndim == 2)
    sent = {k: v.contiguous() for k, v in change(name, tensor).items()}
    save_file(sent, folder / "x.safetensors")
    answer = worker.receive_files(["x.safetensors"], checksum(sent))
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(answer["refused"])
    assert "equivox serve --model DIR --rollouts FOLDER" in answer["cure"]
    assert worker.report_weights()["held"] is None


def test_what_arrives_changed_is_refused_before_anything_is_replaced(worker, folder, untrained_checkpoint):
    name, tensor = next(iter(load_file(untrained_checkpoint / "model.safetensors").items()))
    save_file({name: tensor}, folder / "x.safetensors")
    answer = worker.receive_files(["x.safetensors"], checksum({name: tensor + 1}))
    assert f"arrived with checksum {checksum({name: tensor})}" in answer["refused"]
    assert worker.report_weights()["held"] is None


def test_a_pickle_is_not_read(worker, folder):
    class Trap:
        def __reduce__(self):
            return (folder / "opened").touch, ()

    (folder / "x.safetensors").write_bytes(pickle.dumps(Trap()))
    torch.save({"a": torch.zeros(1)}, folder / "y.safetensors")
    for name in ("x.safetensors", "y.safetensors"):
        assert "cannot be read" in worker.receive_files([name], "0")["refused"]
    assert not (folder / "opened").exists()


def test_tensors_of_several_files_are_one_mapping(tmp_path):
    parts = [{"b": torch.arange(6.0).view(2, 3), "d": torch.ones(1, dtype=torch.bfloat16)}, {"a": torch.zeros(0, 4)}]
    for number, part in enumerate(parts):
        save_file(part, tmp_path / f"{number}.safetensors")
    files = TensorFiles([tmp_path / "0.safetensors", tmp_path / "1.safetensors"])
    expected = parts[0] | parts[1]
    assert set(files) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(files[name], tensor)
        assert files.shape(name) == tensor.shape
    assert checksum(files) == checksum(expected)
