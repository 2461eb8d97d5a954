"""Weights from the trainer's memory into the server's workers, without files: the transport for GPUs.

The workers are told names, types and shapes first, so what does not fit is refused before anything moves. Then the
tensors go one by one, in the order of names, to all workers at once, each of which loads what has arrived while the
next is computed. Both sides sum what they saw, and the sums have to agree.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import logging
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from reasoning.errors import ModelError, RolloutError
from reasoning.inference.endpoint import Endpoint
from reasoning.rollouts.group import GivenUp, Group, GroupLost, backend_for, in_background, join
from reasoning.rollouts.transport import RECORD, SERVED, Recorded, ask_workers, instruct_workers

PATIENCE_S = 120.0
"""How long one tensor may take, the server's loading of the one before it included."""

WORDS_S = 5.0
"""How long a server that left the group is given to say why."""

Announced = Sequence[tuple[str, str, Sequence[int]]]
"""Name, number type without "torch.", and shape of each tensor that will be sent, in the order of names."""

Result = TypeVar("Result")

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Load:
    """tensors to send, what is announced of them, and the device that the first lies on."""

    tensors: Mapping[str, Tensor]
    announced: Announced
    device: torch.device

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Load:
        """Looks at each tensor once."""
        announced, devices = [], []
        for name in sorted(tensors):
            tensor = tensors[name]
            announced.append(described(name, tensor))
            devices.append(tensor.device)
        return cls(tensors, announced, devices[0] if devices else torch.device("cpu"))


class BroadcastTransport(Recorded):
    """Broadcasts by NCCL between GPUs, by gloo where the trainer or the server has none or both share one.

    A server that was restarted gets the last sync again from the mapping that was sent or, in another rank, followed.
    A reference to it is all that is kept: a trainer's computes its tensors anew, and the sums tell whether they are
    still the same. The record in the server's folder holds the sum only. patience_s: without a tensor's arrival, after
    which the other side is given up.
    """

    name = "broadcast"

    def __init__(self, folder: Path, server: Endpoint, *, patience_s: float = PATIENCE_S) -> None:
        super().__init__(folder, server)
        self._patience_s = patience_s
        self._once = copy.copy(server)  # a worker that was asked twice would wait for what is sent once
        self._once.retries = 0
        self._last: Load | None = None
        self._group: Group | None = None
        self._meeting = ""

    def send(self, tensors: Mapping[str, Tensor]) -> int:
        """Raises RolloutError when the server refuses, which then is as before, or is lost."""
        load = self._load_of(tensors)
        checksum, moved = self._broadcast(load)
        self._last = load
        self._write_record(checksum)
        return moved

    def follow(self, tensors: Mapping[str, Tensor]) -> None:
        """As the protocol says."""
        self._last = self._load_of(tensors)

    def send_again(self) -> None:
        """Raises RolloutError when this rank's weights are no longer those that were sent."""
        expected = self._record()["checksum"]
        if self._last is None or self._broadcast(self._last)[0] != expected:
            what = f"{self.server.url} was restarted, and this rank does not have the weights of the last sync"
            raise RolloutError(what, field="url", cure="the same training command goes on from its last checkpoint")

    def close(self) -> None:
        """Leave the group and remove the record if it is of what this rank sent."""
        if self._sent is not None:
            (self.folder / RECORD).unlink(missing_ok=True)
        if self._group is not None:
            self._leave()
            with contextlib.suppress(RolloutError):  # it may be gone
                ask_workers(self._once, "leave_group")

    def _load_of(self, tensors: Mapping[str, Tensor]) -> Load:
        # A trainer's mapping computes its tensors when they are asked for, so it is looked at once: its shapes stay.
        return self._last if self._last and self._last.tensors is tensors else Load.of(tensors)

    def _broadcast(self, load: Load) -> tuple[str, int]:
        """(checksum, bytes) of what the workers hold now."""
        workers = instruct_workers(self.server, "announce_weights", load.announced)
        alone = self._group is None or any(worker["meeting"] != self._meeting for worker in workers)
        if load.announced and alone:
            self._join([worker["device"] for worker in workers], load.device)
        sums, answers = self._while_workers("receive_broadcast", [], lambda given_up: self._give(load, given_up))
        for answer in answers:
            if answer["checksum"] != sums.checksum():
                what = f"{self.server.url} got weights with sum {answer['checksum']}, sent was {sums.checksum()}"
                raise RolloutError(what, field="rollouts", cure=SERVED)
        return sums.checksum(), sums.bytes

    def _give(self, load: Load, given_up: GivenUp) -> Sums:
        sums = Sums()
        for name, dtype, shape in load.announced:
            tensor = load.tensors[name].detach()
            if described(name, tensor) != (name, dtype, shape):
                raise ModelError(f"is no longer {dtype} of shape {shape}", row=name, field="weights")
            group = cast(Group, self._group)
            tensor = tensor.to(group.device).contiguous()
            group.broadcast(as_bytes(tensor), given_up)
            sums.add(name, tensor)
        return sums

    def _join(self, devices: list[str], device: torch.device) -> None:
        """Make the group anew: at first, and when a worker is new or another rank has made one since."""
        self._leave()
        backend, token, size = backend_for(device, devices), secrets.token_hex(8), 1 + len(devices)
        meeting = meeting_file(self.folder, token)
        try:
            self._group, _ = self._while_workers(
                "join_group",
                [token, backend, size, self._patience_s],
                lambda given_up: join(backend, meeting, 0, size, device, self._patience_s, given_up),
            )
        finally:
            meeting.unlink(missing_ok=True)
        self._meeting = token
        LOG.info("weights go to %s by %s", self.server.url, backend)

    def _leave(self) -> None:
        group, self._group, self._meeting = self._group, None, ""
        if group is not None:
            group.close()

    def _while_workers(
        self, method: str, args: list[Any], own: Callable[[GivenUp], Result]
    ) -> tuple[Result, list[dict[str, Any]]]:
        """(what `own` returns, what the workers' part of it returns). Raises RolloutError where either fails."""
        theirs = in_background(lambda: instruct_workers(self._once, method, *args))
        try:
            mine = own(theirs.done)
        except GroupLost as error:
            self._leave()
            raise self._why(theirs, error.what) from None
        except BaseException:
            self._leave()  # the workers notice
            raise
        try:
            return mine, theirs.result(self._patience_s)
        except TimeoutError:
            self._leave()
            raise self._why(theirs, f"no answer for {self._patience_s:g} s") from None

    def _why(self, theirs: Future[Any], otherwise: str) -> RolloutError:
        """The error that the server says or, if it is silent, that the group gave."""
        try:
            theirs.result(WORDS_S)
        except RolloutError as said:
            return said
        except TimeoutError:
            pass
        return RolloutError(f"{self.server.url} does not take the weights: {otherwise}", field="url", cure=SERVED)


class Arriving(Mapping[str, Tensor]):
    """Name -> tensor as it comes from the trainer; each can be asked for once. What is lost is replaced from `stored`.

    A load that broke off would leave a layer without weights. So it goes on, with the checkpoint's weights and without
    an adapter's, and `raise_lost` says afterwards that the model is not to be used before another sync.
    """

    def __init__(self, announced: Announced, group: Group | None, stored: Mapping[str, Tensor]) -> None:
        self._announced = {name: (dtype, tuple(shape)) for name, dtype, shape in announced}
        self._group, self._stored = group, stored
        self._coming = iter(list(self._announced))
        self._early: dict[str, Tensor] = {}
        self._sums = Sums()
        self._lost: str | None = None if group or not announced else "no group was joined"

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._announced:
            raise KeyError(name)
        while name not in self._early:
            upcoming = next(self._coming)
            self._early[upcoming] = self._next(upcoming)
        return self._early.pop(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._announced)

    def __len__(self) -> int:
        return len(self._announced)

    def complete(self) -> bool:
        """Take what is still to come, as nobody gets the next tensor before all have this one. Whether all came."""
        try:
            for name in self._coming:
                self._next(name)
        except RuntimeError as error:  # such as: no memory for it
            self._lost = str(error)
        return self._lost is None

    def raise_lost(self) -> None:
        """Raises ModelError where not everything came."""
        if self._lost is not None:
            cure = "start the same training again; its first sync mends the server"
            raise ModelError(f"stopped coming: {self._lost}", field="weights", cure=cure)

    def checksum(self) -> str:
        """Of all that came."""
        return self._sums.checksum()

    def _next(self, name: str) -> Tensor:
        dtype, shape = self._announced[name]
        if self._group is not None and self._lost is None:
            tensor = torch.empty(shape, dtype=number_type(dtype), device=self._group.device)
            try:
                self._group.broadcast(as_bytes(tensor), lambda: False)
            except GroupLost as error:
                self._lost = error.what
            else:
                self._sums.add(name, tensor)
                return tensor
        return self._stored[name] if name in self._stored else torch.zeros(shape, dtype=number_type(dtype))


def described(name: str, tensor: Tensor) -> tuple[str, str, tuple[int, ...]]:
    """What is announced of a tensor."""
    return name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)


def number_type(name: str) -> torch.dtype:
    """Raises ModelError on what is none."""
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ModelError(f"{name!r} is no number type", field="weights")
    return found


def meeting_file(folder: Path, token: str) -> Path:
    """Where a group meets. Raises ModelError on a token that could lead elsewhere."""
    if not re.fullmatch("[0-9a-f]{16}", token):
        raise ModelError(f"{token!r} is no name of a meeting", field="rollouts")
    return folder / f"meeting-{token}"


def as_bytes(tensor: Tensor) -> Tensor:
    """A contiguous tensor's memory as uint8, not copied."""
    return tensor.flatten().view(torch.uint8)


CHUNK_BYTES = 2**20
"""Summed at once: what a CPU's cache holds, which is seven times as fast there as 2**25."""


class Sums:
    """A checksum of tensors that is computed where they lie; sha256, as files get it, would need them on the CPU.

    Over a tensor's memory as 64-bit words w_1..w_n, the last filled up with zeros: the sums of w_i and of i * w_i,
    modulo 2**64, as in Fletcher's checksum; over those, names, types and shapes: sha256. A word that changed is always
    noticed, words that changed places nearly always. It tells accidents, not attacks.
    """

    def __init__(self) -> None:
        self._digest, self.bytes = hashlib.sha256(), 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Bring in the next tensor, which is contiguous."""
        data = as_bytes(tensor)
        total = weighted = torch.zeros((), dtype=torch.int64, device=data.device)
        for start in range(0, len(data), CHUNK_BYTES):
            chunk = data[start : start + CHUNK_BYTES]
            padded = torch.zeros(-(-len(chunk) // 8) * 8, dtype=torch.uint8, device=data.device)
            padded[: len(chunk)] = chunk
            words = padded.view(torch.int64)
            places = torch.arange(1, len(words) + 1, device=data.device) + start // 8
            total, weighted = total + words.sum(), weighted + (words * places).sum()
        summed = f"{name} {tensor.dtype} {tuple(tensor.shape)} {total.item()} {weighted.item()}\n"
        self._digest.update(summed.encode())
        self.bytes += tensor.nbytes

    def checksum(self) -> str:
        """Hexadecimal digits."""
        return self._digest.hexdigest()
