"""One rank of the trainer and the workers of its server, joined to move tensors: by NCCL between GPUs, else by gloo.

They find each other through a file in the folder that the server watches, which is this user's alone: no port waits for
whoever connects first, and nothing is pickled. Gloo connects through 127.0.0.1; NCCL through the interface that
NCCL_SOCKET_IFNAME names.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor
from torch.distributed import FileStore, ProcessGroupGloo

from reasoning.errors import EquivoxError

Result = TypeVar("Result")

GivenUp = Callable[[], bool]
"""Says whether the others have given up. NCCL is told so, which waits for ever; gloo notices of itself."""


class GroupLost(EquivoxError):
    """A member is gone, was silent for too long, or gave up. The group is of no more use."""


class Group(Protocol):
    """Rank 0 sends, the others receive. device: where the tensors have to lie."""

    device: torch.device

    def broadcast(self, data: Tensor, given_up: GivenUp) -> None:
        """Bring rank 0's bytes into the other ranks' `data`, uint8 of the same length. Raises GroupLost."""
        ...

    def close(self) -> None:
        """Leave; the other members lose the group, if they use it again."""
        ...


def join(
    backend: str,
    meeting: Path,
    rank: int,
    size: int,
    device: torch.device,
    patience_s: float,
    given_up: GivenUp,
) -> Group:
    """The group of `size` members, once all of them have called this. Raises GroupLost when they do not.

    backend: "nccl" or "gloo". meeting: a file that is not there yet. device: this rank's GPU, for NCCL. patience_s: how
    long a member waits for the others, here and in each broadcast.
    """
    with _group_errors():
        store = FileStore(str(meeting), size)
        store.set_timeout(timedelta(seconds=patience_s))
        if backend == "nccl":
            return NcclGroup(store, rank, size, device, patience_s, given_up)
        return GlooGroup(store, rank, size, patience_s)


class GlooGroup:
    """On CPUs, and wherever two members share a GPU, which NCCL does not let them."""

    device = torch.device("cpu")

    def __init__(self, store: FileStore, rank: int, size: int, patience_s: float) -> None:
        options = cast(Any, ProcessGroupGloo)._Options()
        options._devices = [ProcessGroupGloo.create_device(hostname="127.0.0.1")]
        options._timeout = timedelta(seconds=patience_s)
        self._members: Any = ProcessGroupGloo(cast(Any, store), rank, size, options)

    def broadcast(self, data: Tensor, given_up: GivenUp) -> None:
        with _group_errors():
            self._members.broadcast(data, 0).wait()

    def close(self) -> None:
        self._members = None


class NcclGroup:
    """Through vLLM's own communicator, which has no watchdog that would take a server down with its trainer.

    It is handed NCCL's id as bytes: the way over vLLM's StatelessProcessGroup, which TRL goes, pickles it.
    """

    def __init__(
        self,
        store: FileStore,
        rank: int,
        size: int,
        device: torch.device,
        patience_s: float,
        given_up: GivenUp,
    ) -> None:
        from vllm.distributed.device_communicators.pynccl import (  # pyright: ignore[reportMissingImports]
            PyNcclCommunicator,
        )
        from vllm.distributed.device_communicators.pynccl_wrapper import (  # pyright: ignore[reportMissingImports]
            NCCLLibrary,
        )

        self.device, self._patience_s = device, patience_s
        if rank == 0:
            store.set("id", cast(Any, bytes(NCCLLibrary().ncclGetUniqueId().internal)))
        unique_id = store.get("id")
        # NCCL waits for the others for ever, so another thread does.
        joined = in_background(lambda: PyNcclCommunicator.from_unique_id_bytes(unique_id, rank, size, device))
        self._wait(joined.done, given_up)
        self._members = joined.result()

    def broadcast(self, data: Tensor, given_up: GivenUp) -> None:
        with _group_errors(), torch.cuda.device(self.device):
            stream = torch.cuda.current_stream()
            self._members.broadcast(data, src=0, stream=stream)
            arrived = torch.cuda.Event()
            arrived.record(stream)
            try:
                self._wait(arrived.query, given_up)
            except GroupLost:
                self.close()  # aborts what still waits on the GPU
                raise

    def close(self) -> None:
        self._members.destroy()

    def _wait(self, done: Callable[[], bool], given_up: GivenUp) -> None:
        end, pause = time.monotonic() + self._patience_s, 1e-5
        while not done():
            if given_up():
                raise GroupLost("the other side gave up")
            if time.monotonic() > end:
                raise GroupLost(f"nothing moved for {self._patience_s:g} s")
            time.sleep(pause)
            pause = min(2 * pause, 0.01)


def backend_for(mine: torch.device, theirs: list[str]) -> str:
    """NCCL's name where this rank's device and the others', as `device_name` names them, are each a GPU of its own."""
    names = [device_name(mine), *theirs]
    return "gloo" if "cpu" in names or len(set(names)) < len(names) else "nccl"


def device_name(device: torch.device) -> str:
    """The GPU's own number, whatever CUDA_VISIBLE_DEVICES calls it; "cpu" elsewhere."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else "cpu"


def in_background(work: Callable[[], Result]) -> Future[Result]:
    """What `work` will return; unlike an executor's, this thread lets the process end."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


@contextmanager
def _group_errors() -> Iterator[None]:
    """RuntimeError, by which torch and vLLM say that a collective failed, as GroupLost."""
    try:
        yield
    except RuntimeError as error:
        raise GroupLost(str(error).splitlines()[0]) from None
