"""How weights travel from the trainer to a server that is paused for them."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock
from safetensors.torch import save
from torch import Tensor

from reasoning.errors import EvaluationError, RolloutError
from reasoning.files import write_atomic
from reasoning.inference.endpoint import Endpoint
from reasoning.rollouts.receiving import add_to_checksum

FILE_BYTES = 2**30
"""A sync is cut into files of about this size: the trainer holds one of them in memory at a time."""

STEM, RECORD = "weights-", "last-sync.json"

SERVED = (
    "see that the server runs as `equivox serve --model DIR --rollouts FOLDER` starts it, and look at its log; the "
    "same training command then goes on from its last checkpoint"
)


class Transport(Protocol):
    """Brings tensors into a server. lock: held while one of the training's ranks does so."""

    name: str
    lock: AbstractContextManager[Any]

    def expected(self) -> str | None:
        """Checksum that the server's workers report after the last `send` of any rank, None before the first."""
        ...

    def send(self, tensors: Mapping[str, Tensor]) -> int:
        """Replace the server's weights by these. Returns how many bytes they have."""
        ...

    def follow(self, tensors: Mapping[str, Tensor]) -> None:
        """Note in a rank that sends nothing what another one, whose tensors are the same, is about to `send`."""
        ...

    def send_again(self) -> None:
        """The last `send` of any rank once more, for a server that lost it."""
        ...

    def close(self) -> None:
        """Leave nothing behind."""
        ...


class Recorded:
    """A lock and a record in the folder that the server watches: what a training's ranks know of each other's syncs.

    Raises RolloutError when the server watches another folder.
    """

    def __init__(self, folder: Path, server: Endpoint) -> None:
        self.folder, self.server = folder.resolve(), server
        self._sent: str | None = None
        watched = ask_workers(server, "report_weights")[0]["folder"]
        if Path(watched) != self.folder:
            raise RolloutError(
                f"the server at {server.url} takes weights from {watched}, the training writes them to {self.folder}",
                field="rollouts",
                cure=f"name {watched} for the training, or start `equivox serve --rollouts {self.folder}`",
            )
        self.lock: AbstractContextManager[Any] = FileLock(self.folder / "lock")

    def expected(self) -> str | None:
        """Raises RolloutError when another training sent weights after this one."""
        checksum = self._record()["checksum"]
        if self._sent is not None and checksum != self._sent:
            raise other_training(self.server)
        return checksum

    def _write_record(self, checksum: str, files: Sequence[str] = ()) -> None:
        write_atomic(self.folder / RECORD, json.dumps({"checksum": checksum, "files": list(files)}))
        self._sent = checksum

    def _record(self) -> dict[str, Any]:
        try:
            return json.loads((self.folder / RECORD).read_bytes())
        except FileNotFoundError:
            return {"checksum": None, "files": []}


class FileTransport(Recorded):
    """Safetensors files in a folder of this machine that the server watches; it says what arrived by checksum.

    The last sync and its record stay there until the next one: for ranks that did not send it, and for a server that is
    restarted. A folder in memory is fastest (/dev/shm).
    """

    name = "file"

    def send(self, tensors: Mapping[str, Tensor]) -> int:
        """Raises StorageError when the disk refuses and RolloutError when the server does, which then is as before."""
        files: list[str] = []
        try:
            checksum, written = self._write(tensors, files)
            instruct_workers(self.server, "receive_files", files, checksum)
            self._write_record(checksum, files)
        except BaseException:
            self._remove(files)
            raise
        self._remove({path.name for path in self.folder.glob(f"{STEM}*")}.difference(files))
        return written

    def follow(self, tensors: Mapping[str, Tensor]) -> None:
        """Nothing: the files are there for every rank."""

    def send_again(self) -> None:
        """Have the server read the files of the last `send`."""
        record = self._record()
        instruct_workers(self.server, "receive_files", record["files"], record["checksum"])

    def close(self) -> None:
        """Remove what this rank sent."""
        if self._sent is not None:
            self._remove({RECORD, *(path.name for path in self.folder.glob(f"{STEM}*"))})

    def _write(self, tensors: Mapping[str, Tensor], files: list[str]) -> tuple[str, int]:
        """(checksum, bytes) of the tensors in new files, whose names are added to `files`."""
        stem, digest, written = STEM + secrets.token_hex(8), hashlib.sha256(), 0
        for part in portions(tensors, FILE_BYTES):
            for name, tensor in part.items():
                add_to_checksum(digest, name, tensor)
                written += tensor.nbytes
            files.append(f"{stem}-{len(files):05d}.safetensors")
            write_atomic(self.folder / files[-1], save(part))
        return digest.hexdigest(), written

    def _remove(self, files: Iterable[str]) -> None:
        for name in files:
            (self.folder / name).unlink(missing_ok=True)


def portions(tensors: Mapping[str, Tensor], limit: int) -> Iterator[dict[str, Tensor]]:
    """The tensors in the order of names, contiguous on the CPU, cut where a portion would exceed `limit` bytes."""
    part: dict[str, Tensor] = {}
    size = 0
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        if part and size + tensor.nbytes > limit:
            yield part
            part, size = {}, 0
        part[name] = tensor
        size += tensor.nbytes
    if part:
        yield part


def ask_workers(server: Endpoint, method: str, *args: Any, row: str | None = None) -> list[dict[str, Any]]:
    """What each of the server's workers returns from a method of `WeightReceiver`."""
    return post(server, "/collective_rpc", {"method": method, "args": list(args)}, row)["results"]


def instruct_workers(server: Endpoint, method: str, *args: Any) -> list[dict[str, Any]]:
    """As `ask_workers`. Raises RolloutError with the words and the cure of the first worker that refuses."""
    answers = ask_workers(server, method, *args)
    for answer in answers:
        if "refused" in answer:
            what = f"{server.url} refuses the weights: {answer['refused']}"
            raise RolloutError(what, field="rollouts", cure=answer["cure"])
    return answers


def post(server: Endpoint, path: str, body: Mapping[str, Any], row: str | None = None) -> Any:
    """The JSON that answers. Raises RolloutError naming URL, clip and cure when none comes in time."""
    try:
        return server.post(path, dict(body), row)
    except EvaluationError as error:
        raise RolloutError(error.what, row=row, field="url", cure=SERVED) from None


def other_training(server: Endpoint, row: str | None = None) -> RolloutError:
    """The error that a server's weights are none of this training's."""
    what = f"{server.url} holds weights that this training did not send"
    cure = "give each training a server and a folder of its own; start the server anew for a new training"
    return RolloutError(what, row=row, field="url", cure=cure)
