"""Weights over a real group and a real HTTP server, into workers that keep tensors where vLLM's would load them."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from reasoning.errors import ModelError, RolloutError
from reasoning.inference.endpoint import Endpoint
from reasoning.rollouts import broadcast
from reasoning.rollouts.broadcast import BroadcastTransport, Sums, meeting_file
from reasoning.rollouts.worker_extension import INCOMPLETE, WeightReceiver

SILENT_S = 30.0


class Worker(WeightReceiver):
    """Keeps what a vLLM worker would load. full: raises where a GPU has no memory left."""

    full = False

    def __init__(self, checkpoint, rank):
        self.rank, self.device = rank, torch.device("cpu")
        self.model_runner: Any = SimpleNamespace(
            model_config=SimpleNamespace(model=str(checkpoint), dtype=torch.float32)
        )
        parallel = SimpleNamespace(data_parallel_size=1)
        self.vllm_config: Any = SimpleNamespace(parallel_config=parallel, lora_config=None)
        self.loaded: dict[str, torch.Tensor] = {}

    def _load_into_model(self, tensors):
        for name in sorted(tensors):
            if self.full:
                raise RuntimeError("out of memory")
            self.loaded[name] = tensors[name]


class Server:
    """Two workers behind HTTP. asked: their methods. dies_at: the method in whose middle the server is gone."""

    def __init__(self, checkpoint):
        self.checkpoint, self.asked, self.dies_at, self.is_silent = checkpoint, [], "", False
        self.turn = threading.Lock()
        self.restart()

    def restart(self):
        self.workers = [Worker(self.checkpoint, rank) for rank in range(2)]

    def reply(self, path, body, headers):
        assert path == "/collective_rpc"
        method = body["method"]
        self.asked.append(method)
        if self.is_silent and method == "receive_broadcast":
            time.sleep(SILENT_S)
        if method == self.dies_at:
            for worker in self.workers:
                worker.leave_group()
            raise ConnectionAbortedError("the server is gone")  # no answer: the connection closes
        with self.turn, ThreadPoolExecutor(2) as pool:  # one request at a time, all workers at once, as in vLLM
            results = list(pool.map(lambda worker: getattr(worker, method)(*body["args"]), self.workers))
        return 200, json.dumps({"results": results}), {}


@pytest.fixture
def server(http_server, untrained_checkpoint, folder):
    server = Server(untrained_checkpoint)
    server.url = http_server(server.reply).removesuffix("/v1")
    yield server
    for worker in server.workers:
        worker.leave_group()


@pytest.fixture
def connect(server, folder):
    opened = []

    def new(**options):
        opened.append(BroadcastTransport(folder, Endpoint(server.url, retries=1, wait=0.01), **options))
        return opened[-1]

    yield new
    for transport in opened:
        transport.close()


@pytest.fixture(scope="session")
def stored(untrained_checkpoint):
    return load_file(untrained_checkpoint / "model.safetensors")


@pytest.fixture(scope="session")
def tensors(stored):
    """Some of the checkpoint's, changed: one of them in another number type and one not contiguous."""
    names = [name for name in sorted(stored) if "layers.1." in name and name.endswith("proj.weight")]
    changed = {name: stored[name] + 1 for name in names}
    square = next(name for name in names if stored[name].shape[0] == stored[name].shape[1])
    changed[square] = changed[square].t()
    changed[names[-1]] = changed[names[-1]].bfloat16()
    return dict(reversed(changed.items()))


def same(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(one[n], other[n]) and one[n].dtype == other[n].dtype for n in one
    )


def held(server):
    return [worker.report_weights()["held"] for worker in server.workers]


def test_every_worker_gets_every_tensor_and_says_so_by_its_sum(server, connect, tensors):
    transport = connect()
    assert transport.expected() is None
    assert transport.send(tensors) == sum(t.nbytes for t in tensors.values())
    assert all(same(worker.loaded, tensors) for worker in server.workers)
    assert held(server) == [transport.expected()] * 2


def test_a_group_serves_many_syncs(server, connect, tensors):
    transport = connect()
    for step in range(3):
        sent = {name: tensor + step for name, tensor in tensors.items()}
        transport.send(sent)
        assert all(same(worker.loaded, sent) for worker in server.workers)
    assert server.asked.count("join_group") == 1


def test_a_trainers_tensors_are_computed_once_a_sync_and_in_the_order_of_names(connect, tensors):
    asked = []

    class Lazy(dict):
        def __getitem__(self, name):
            asked.append(name)
            return super().__getitem__(name)

    transport, lazy = connect(), Lazy(tensors)
    for _ in range(3):
        transport.send(lazy)
    assert asked == 4 * sorted(tensors), "their shapes were looked at before the first sync"


def test_what_the_next_sync_leaves_out_is_the_checkpoints_again(server, connect, tensors, stored):
    transport = connect()
    transport.send(tensors)
    first = next(iter(tensors))
    transport.send({first: tensors[first]})
    left_out = {name: stored[name] for name in tensors}
    assert all(same(worker.loaded, left_out | {first: tensors[first]}) for worker in server.workers)
    transport.send({})
    assert all(same(worker.loaded, left_out) for worker in server.workers)
    assert held(server) == [transport.expected()] * 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda name, t: {"model.no_such": t}, r"\[model.no_such\] weights: is no weight of the served checkpoint"),
        (lambda name, t: {name: t[:1]}, r"has shape \(1, \d+\), in the served checkpoint it has \(\d+, \d+\)"),
    ],
    ids=["unknown", "other shape"],
)
def test_what_does_not_fit_is_refused_before_anything_moves(server, connect, tensors, change, said):
    transport = connect()
    transport.send(tensors)
    before, asked = held(server), len(server.asked)
    with pytest.raises(RolloutError, match=rf"refuses the weights: .*{said}.*To mend: serve the checkpoint"):
        transport.send(change(*next(iter(tensors.items()))))
    assert server.asked[asked:] == ["announce_weights"]
    assert held(server) == before == [transport.expected()] * 2
    server.restart()
    transport.send_again()
    assert all(same(worker.loaded, tensors) for worker in server.workers)


def test_a_server_of_several_engines_is_refused(server, connect, tensors):
    for worker in server.workers:
        worker.vllm_config.parallel_config.data_parallel_size = 2
    with pytest.raises(RolloutError, match=r"2 engines share this server.*name another transport"):
        connect().send(tensors)


def test_a_server_that_was_restarted_gets_the_last_sync_again_in_a_new_group(server, connect, tensors):
    transport = connect()
    transport.send(tensors)
    expected = transport.expected()
    server.restart()
    assert held(server) == [None, None]
    transport.send_again()
    assert held(server) == [expected] * 2
    assert all(same(worker.loaded, tensors) for worker in server.workers)
    transport.send({})
    assert server.asked.count("join_group") == 2


def test_another_rank_brings_in_again_what_it_followed_and_the_first_then_goes_on(server, connect, tensors):
    first, other = connect(), connect()
    other.follow({name: tensor.clone() for name, tensor in tensors.items()})
    first.send(tensors)
    assert other.expected() == first.expected()
    server.restart()
    other.send_again()
    assert held(server) == [first.expected()] * 2
    newer = {name: tensor + 1 for name, tensor in tensors.items()}
    first.send(newer)
    assert all(same(worker.loaded, newer) for worker in server.workers)
    assert other.expected() == first.expected()


def test_a_rank_without_the_weights_of_the_last_sync_says_so(server, connect, tensors):
    first, stranger, stray = connect(), connect(), connect()
    first.send(tensors)
    server.restart()
    with pytest.raises(RolloutError, match=r"this rank does not have the weights of the last sync.*last checkpoint"):
        stranger.send_again()
    stray.follow({name: tensor + 1 for name, tensor in tensors.items()})
    with pytest.raises(RolloutError, match="does not have the weights of the last sync"):
        stray.send_again()


def test_a_second_training_on_the_same_server_is_noticed_by_the_first(connect, tensors):
    one, two = connect(), connect()
    one.send(tensors)
    two.send({})
    with pytest.raises(RolloutError, match="holds weights that this training did not send"):
        one.expected()


@pytest.mark.parametrize("method", ["announce_weights", "join_group", "receive_broadcast"])
def test_a_server_that_dies_in_the_middle_is_one_clear_error_and_can_come_back(server, connect, tensors, method):
    transport = connect(patience_s=5.0)
    server.dies_at = method
    start = time.monotonic()
    with pytest.raises(RolloutError, match=rf"^url: {server.url}/collective_rpc does not answer.*To mend: see that"):
        transport.send(tensors)
    assert time.monotonic() - start < 30
    assert transport.expected() is None
    server.dies_at = ""
    server.restart()
    transport.send(tensors)
    assert held(server) == [transport.expected()] * 2


def test_a_server_that_is_silent_is_given_up_after_the_time_that_was_said(server, connect, tensors):
    transport = connect(patience_s=1.0)
    server.is_silent = True
    start = time.monotonic()
    with pytest.raises(RolloutError, match=rf"^url: {server.url} does not take the weights: .*To mend: see that"):
        transport.send(tensors)
    assert time.monotonic() - start < SILENT_S


def test_a_worker_that_cannot_load_says_why_and_nobody_waits(server, connect, tensors):
    transport = connect()
    server.workers[1].full = True
    with pytest.raises(RolloutError, match=r"refuses the weights: failed with RuntimeError: out of memory.*restart"):
        transport.send(tensors)
    assert held(server)[1] == INCOMPLETE
    server.workers[1].full = False
    transport.send(tensors)
    assert all(same(worker.loaded, tensors) for worker in server.workers)
    assert server.asked.count("join_group") == 1, "what it could not load it took nevertheless"


def test_a_trainer_that_dies_in_the_middle_leaves_whole_layers_and_the_next_one_mends_them(
    server, connect, tensors, stored
):
    order = sorted(tensors)

    class Dying(dict):
        armed = False

        def __getitem__(self, name):
            if self.armed and name == order[2]:
                raise KeyboardInterrupt
            return super().__getitem__(name)

    transport, dying = connect(), Dying(tensors)
    transport.follow(dying)
    dying.armed = True
    with pytest.raises(KeyboardInterrupt):
        transport.send(dying)
    end = time.monotonic() + 20
    while any(len(worker.loaded) < len(order) for worker in server.workers) and time.monotonic() < end:
        time.sleep(0.05)
    mixed = {name: tensors[name] if name in order[:2] else stored[name] for name in order}
    assert all(same(worker.loaded, mixed) for worker in server.workers)
    assert held(server) == [INCOMPLETE] * 2
    following = connect()
    following.send(tensors)
    assert all(same(worker.loaded, tensors) for worker in server.workers)
    assert held(server) == [following.expected()] * 2


def test_tensors_that_are_not_those_that_were_announced_are_refused(connect, tensors):
    transport, changing = connect(), dict(tensors)
    transport.send(changing)
    name = sorted(tensors)[1]
    changing[name] = changing[name].double()
    with pytest.raises(ModelError, match=rf"\[{name}\] weights: is no longer float32"):
        transport.send(changing)


def test_nothing_is_left_behind(server, connect, tensors, folder):
    transport = connect()
    transport.send(tensors)
    assert {path.name for path in folder.iterdir()} <= {"lock", "last-sync.json"}
    transport.close()
    assert {path.name for path in folder.iterdir()} <= {"lock"}
    assert [worker.weights_group for worker in server.workers] == [None, None]


def test_no_client_can_have_a_group_meet_elsewhere(server, connect, tmp_path):
    assert meeting_file(tmp_path, "0123456789abcdef").parent == tmp_path
    for token in ("../x", "", "0123456789abcde/", str(tmp_path / "x"), "0123456789ABCDEF"):
        with pytest.raises(ModelError, match="is no name of a meeting"):
            meeting_file(tmp_path, token)
        assert "is no name of a meeting" in server.workers[0].join_group(token, "gloo", 2, 1.0)["refused"]


def test_weights_of_no_number_type_or_outside_a_group_are_not_waited_for(server, stored):
    worker, (name, tensor) = server.workers[0], next(iter(stored.items()))
    shape = list(tensor.shape)
    assert "'no_such_type' is no number type" in worker.announce_weights([(name, "no_such_type", shape)])["refused"]
    assert "refused" not in worker.announce_weights([(name, "float32", shape)])
    assert "no group was joined" in worker.receive_broadcast()["refused"]


def naive_sums(data: bytes) -> tuple[int, int]:
    words = np.frombuffer(data + b"\0" * (-len(data) % 8), dtype="<u8").tolist()
    return sum(words) % 2**64, sum(i * w for i, w in enumerate(words, 1)) % 2**64


@given(st.binary(max_size=200), st.sampled_from([8, 16, 64, 2**20]))
def test_the_sums_are_those_of_the_words_however_they_are_cut(data, chunk):
    tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.zeros(0, dtype=torch.uint8)
    seen = []
    sums = Sums()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(broadcast, "CHUNK_BYTES", chunk)
        patch.setattr(sums, "_digest", SimpleNamespace(update=seen.append))
        sums.add("w", tensor)
    total, weighted = (int(part) % 2**64 for part in seen[0].split()[-2:])
    assert (total, weighted) == naive_sums(data)
    assert sums.bytes == len(data)


@pytest.mark.gpu
def test_a_sum_is_the_same_on_a_gpu():
    tensors = {name: torch.randn(1001, 333).to(kind) for name, kind in (("a", torch.float32), ("b", torch.bfloat16))}
    here, there = Sums(), Sums()
    for name, tensor in tensors.items():
        here.add(name, tensor)
        there.add(name, tensor.cuda())
    assert here.checksum() == there.checksum()


def test_a_sum_tells_bytes_places_names_types_shapes_and_order():
    def of(*named):
        sums = Sums()
        for name, tensor in named:
            sums.add(name, tensor)
        return sums.checksum()

    a, b = torch.arange(24.0), torch.arange(24.0) + 1
    flipped = a.clone()
    flipped.view(torch.uint8)[37] ^= 4
    exchanged = a.clone()
    exchanged[[2, 3, 8, 9]] = a[[8, 9, 2, 3]]
    different = {
        of(("a", a), ("b", b)), of(("b", b), ("a", a)), of(("a", b), ("b", a)), of(("a", a)), of(("c", a)),
        of(("a", flipped)), of(("a", exchanged)), of(("a", a.view(4, 6))), of(("a", a.view(torch.int32))),
    }  # fmt: skip
    assert len(different) == 9
    assert of(("a", a)) == of(("a", a.clone()))
