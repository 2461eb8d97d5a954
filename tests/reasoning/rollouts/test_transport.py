"""Files that carry weights: complete, cut to size, gone when no longer needed, and honest about a full disk."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reasoning.errors import RolloutError, StorageError
from reasoning.inference.endpoint import Endpoint
from reasoning.rollouts import transport
from reasoning.rollouts.receiving import checksum
from reasoning.rollouts.transport import FileTransport, portions

TENSORS = {
    "b.weight": torch.arange(12.0).view(3, 4).t(),  # not contiguous
    "a.weight": torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).bfloat16(),
    "c.bias": torch.tensor([1.5]),
}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder


@pytest.fixture
def server(http_server, folder):
    """A server whose worker reads the files as the receiver does; `refusal` makes it refuse, `seen` is what it read."""

    class Server:
        refusal: str | None = None
        watches = str(folder)

        def __init__(self) -> None:
            self.seen: list[dict] = []

        def reply(self, path, body, headers):
            assert path == "/collective_rpc"
            if body["method"] == "report_weights":
                result = {"folder": self.watches, "boot": "1", "held": None}
            elif self.refusal:
                result = {"refused": self.refusal, "cure": "mend it"}
            else:
                files, expected = body["args"]
                assert all(Path(name).name == name for name in files)
                tensors = {k: v for name in files for k, v in load_file(folder / name).items()}
                assert checksum(tensors) == expected
                self.seen.append(tensors)
                result = {"checksum": expected}
            return 200, json.dumps({"results": [result, result]}), {}  # two workers

    server = Server()
    server.url = http_server(server.reply).removesuffix("/v1")
    return server


def endpoint(server):
    return Endpoint(server.url, retries=1, wait=0.01)


def weights(folder):
    return sorted(path.name for path in folder.glob("weights-*"))


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("limit", [1, 60, 10**6])
def test_every_tensor_arrives_with_its_bytes_in_files_cut_to_size(server, folder, monkeypatch, limit):
    monkeypatch.setattr(transport, "FILE_BYTES", limit)
    sender = FileTransport(folder, endpoint(server))
    assert sender.send(TENSORS) == sum(t.nbytes for t in TENSORS.values())
    assert same(server.seen[0], TENSORS)
    assert sender.expected() == checksum(TENSORS)
    assert len(weights(folder)) == {1: 3, 60: 2, 10**6: 1}[limit]


def test_tensors_are_computed_once_and_in_the_order_of_names():
    asked = []

    class Lazy(dict):
        def __getitem__(self, name):
            asked.append(name)
            return super().__getitem__(name)

    parts = list(portions(Lazy(TENSORS), 10**6))
    assert asked == ["a.weight", "b.weight", "c.bias"]
    assert [list(part) for part in parts] == [asked]
    assert all(t.is_contiguous() for t in parts[0].values())


def test_only_the_last_sync_lies_in_the_folder_and_can_be_sent_again(server, folder):
    sender = FileTransport(folder, endpoint(server))
    sender.send(TENSORS)
    newer = {name: tensor + 1 for name, tensor in TENSORS.items()}
    sender.send(newer)
    assert len(weights(folder)) == 1
    sender.send_again()
    assert [same(seen, newer) for seen in server.seen] == [False, True, True]
    sender.close()
    assert os.listdir(folder) == []


def test_every_rank_knows_the_last_sync_and_can_send_it_again_but_only_who_sent_it_removes_it(server, folder):
    sender, other = FileTransport(folder, endpoint(server)), FileTransport(folder, endpoint(server))
    assert other.expected() is None
    sender.send(TENSORS)
    assert other.expected() == checksum(TENSORS)
    other.send_again()
    other.close()
    assert same(server.seen[-1], TENSORS)
    sender.send_again()


def test_a_second_training_in_the_same_folder_is_noticed_by_the_first(server, folder):
    one, two = FileTransport(folder, endpoint(server)), FileTransport(folder, endpoint(server))
    one.send(TENSORS)
    two.send({"c.bias": torch.zeros(1)})
    with pytest.raises(RolloutError, match="holds weights that this training did not send"):
        one.expected()


def test_a_refusal_is_one_error_and_the_sync_before_it_still_stands(server, folder):
    sender = FileTransport(folder, endpoint(server))
    sender.send(TENSORS)
    server.refusal = "[x] weights: is no weight"
    with pytest.raises(RolloutError, match=r"refuses the weights: \[x\] weights: is no weight. To mend: mend it"):
        sender.send({"x": torch.zeros(1)})
    server.refusal = None
    sender.send_again()
    assert sender.expected() == checksum(TENSORS)
    assert same(server.seen[-1], TENSORS)
    assert len(weights(folder)) == 1


def test_a_full_disk_is_one_clear_error_leaves_no_part_and_the_sync_before_it(server, folder, monkeypatch):
    monkeypatch.setattr(transport, "FILE_BYTES", 1)
    sender = FileTransport(folder, endpoint(server))
    sender.send(TENSORS)
    before = weights(folder)
    left = [None]  # the first file still fits

    def full(file):
        if not left:
            raise OSError(28, "No space left on device")
        left.pop()

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match=r"weights-.*No space left on device.*free space"):
            sender.send({name: tensor + 1 for name, tensor in TENSORS.items()})
    assert not list(folder.glob(".*"))
    assert weights(folder) == before
    sender.send_again()
    assert same(server.seen[-1], TENSORS)


def test_a_server_that_watches_another_folder_is_refused_with_both_named(server, folder, tmp_path):
    with pytest.raises(RolloutError, match=rf"takes weights from {folder}, the training writes them to {tmp_path}/x"):
        FileTransport(tmp_path / "x", endpoint(server))
    assert FileTransport(tmp_path / "x" / ".." / "folder", endpoint(server)).folder == folder


def test_a_server_that_was_not_started_for_training_is_named_with_the_command(http_server, folder):
    url = http_server(lambda path, body, headers: (404, '{"detail": "Not Found"}', {}))
    with pytest.raises(RolloutError, match=r"collective_rpc answers 404.*equivox serve --model DIR --rollouts FOLDER"):
        FileTransport(folder, Endpoint(url, retries=0))
