"""A group of a trainer and its server's workers, by gloo: what arrives, who is reached, and how it ends."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import torch

from reasoning.rollouts.group import GroupLost, backend_for, device_name, in_background, join

CPU = torch.device("cpu")


def never():
    return False


@pytest.fixture
def members(tmp_path):
    """members(size, patience_s): a group of threads, rank 0 first; all have left at the end."""
    joined = []

    def gather(size, patience_s=20.0):
        meeting = tmp_path / f"meeting-{len(joined)}"
        with ThreadPoolExecutor(size) as pool:
            ranks = [pool.submit(join, "gloo", meeting, r, size, CPU, patience_s, never) for r in range(size)]
            group = [rank.result() for rank in ranks]
        joined.extend(group)
        return group

    yield gather
    for group in joined:
        group.close()


def broadcast(members, *data):
    with ThreadPoolExecutor(len(members)) as pool:
        for done in [pool.submit(m.broadcast, d, never) for m, d in zip(members, data, strict=True)]:
            done.result()


@pytest.mark.parametrize("length", [0, 1, 1_000_003])
def test_every_member_gets_the_bytes_of_the_first(members, length):
    sent = torch.randint(0, 256, (length,), dtype=torch.uint8)
    arrived = [torch.zeros_like(sent), torch.zeros_like(sent)]
    broadcast(members(3), sent, *arrived)
    assert all(torch.equal(sent, a) for a in arrived)


def test_it_listens_on_this_machine_only(members):
    process = psutil.Process()

    def listening():
        return {c.laddr for c in process.net_connections() if c.status == psutil.CONN_LISTEN}

    before = listening()
    members(2)
    opened = listening() - before
    assert opened
    assert {address.ip for address in opened} == {"127.0.0.1"}


def test_a_member_that_leaves_is_missed_at_once(members):
    first, second = members(2)
    second.close()
    start = time.monotonic()
    with pytest.raises(GroupLost, match="Connection closed by peer"):
        first.broadcast(torch.zeros(10**8, dtype=torch.uint8), never)
    assert time.monotonic() - start < 10


def test_a_member_that_is_silent_is_waited_for_as_long_as_was_said(members):
    first, _ = members(2, patience_s=1.0)
    start = time.monotonic()
    with pytest.raises(GroupLost, match="Timed out"):
        first.broadcast(torch.zeros(10**8, dtype=torch.uint8), never)
    assert 1 <= time.monotonic() - start < 20


def test_a_member_that_never_comes_is_waited_for_as_long_as_was_said(tmp_path):
    start = time.monotonic()
    with pytest.raises(GroupLost):
        join("gloo", tmp_path / "meeting", 0, 2, CPU, 1.0, never)
    assert 1 <= time.monotonic() - start < 20


def test_nccl_is_for_gpus_of_which_no_two_members_share_one():
    assert device_name(CPU) == "cpu"
    assert backend_for(CPU, ["cpu"]) == backend_for(CPU, ["GPU-1", "GPU-2"]) == "gloo"


def test_work_in_the_background_returns_or_raises():
    assert in_background(lambda: 3).result(10) == 3
    with pytest.raises(ValueError, match="not so"):
        in_background(lambda: (_ for _ in ()).throw(ValueError("not so")).__next__()).result(10)
