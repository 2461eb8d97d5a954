"""How weights travel from the trainer to a server that is paused for them."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import save
from torch import Tensor

from reasoning.errors import EvaluationError, RolloutError
from reasoning.files import write_atomic
from reasoning.inference.endpoint import Endpoint
from reasoning.rollouts.receiving import add_to_checksum

FILE_BYTES = 2**30
"""A sync is cut into files of about this size: the trainer holds one of them in memory at a time."""

SERVED = (
    "see that the server runs as `equivox serve --model DIR --rollouts FOLDER` starts it, and look at its log; the "
    "same training command then goes on from its last checkpoint"
)


class Transport(Protocol):
    """Brings tensors into a server. checksum: of what it holds by this transport, None before the first `send`."""

    name: str
    checksum: str | None

    def send(self, tensors: Mapping[str, Tensor]) -> int:
        """Replace the server's weights by these. Returns how many bytes they have."""
        ...

    def send_again(self) -> None:
        """The last `send` once more, for a server that lost it."""
        ...

    def close(self) -> None:
        """Leave nothing behind."""
        ...


class FileTransport:
    """Safetensors files in a folder of this machine that the server watches; it says what arrived by checksum.

    The last sync stays on disk until the next one, for a server that is restarted. In memory the folder is fastest
    (/dev/shm). Raises RolloutError when the server watches another folder, or none.
    """

    name = "file"

    def __init__(self, folder: Path, server: Endpoint) -> None:
        self.folder, self.server = folder.resolve(), server
        self.checksum: str | None = None
        self._files: list[str] = []
        watched = ask_workers(server, "report_weights")[0]["folder"]
        if Path(watched) != self.folder:
            raise RolloutError(
                f"the server at {server.url} takes weights from {watched}, the training writes them to {self.folder}",
                field="rollouts",
                cure=f"name {watched} for the training, or start `equivox serve --rollouts {self.folder}`",
            )

    def send(self, tensors: Mapping[str, Tensor]) -> int:
        """Raises StorageError when the disk refuses and RolloutError when the server does, which then is as before."""
        before, mark = self._files, self.checksum
        try:
            written = self._write(tensors)
            self.send_again()
        except BaseException:
            self._remove(self._files)
            self._files, self.checksum = before, mark
            raise
        self._remove(before)
        return written

    def send_again(self) -> None:
        """Have the server read the files of the last `send`."""
        for answer in ask_workers(self.server, "receive_files", self._files, self.checksum):
            if "refused" in answer:
                what = f"{self.server.url} refuses the weights: {answer['refused']}"
                raise RolloutError(what, field="rollouts", cure=answer["cure"])

    def close(self) -> None:
        """Remove the files of the last sync."""
        self._remove(self._files)
        self._files = []

    def _write(self, tensors: Mapping[str, Tensor]) -> int:
        """New files with the tensors, which become the last sync's. Returns the tensors' bytes."""
        stem, digest, written = secrets.token_hex(8), hashlib.sha256(), 0
        self._files = []
        for part in portions(tensors, FILE_BYTES):
            for name, tensor in part.items():
                add_to_checksum(digest, name, tensor)
                written += tensor.nbytes
            self._files.append(f"weights-{stem}-{len(self._files):05d}.safetensors")
            write_atomic(self.folder / self._files[-1], save(part))
        self.checksum = digest.hexdigest()
        return written

    def _remove(self, files: list[str]) -> None:
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


def ask_workers(server: Endpoint, method: str, *args: Any) -> list[dict[str, Any]]:
    """What each of the server's workers returns from a method of `WeightReceiver`."""
    return post(server, "/collective_rpc", {"method": method, "args": list(args)})["results"]


def post(server: Endpoint, path: str, body: Mapping[str, Any], row: str | None = None) -> Any:
    """The JSON that answers. Raises RolloutError naming URL, clip and cure when none comes in time."""
    try:
        return server.post(path, dict(body), row)
    except EvaluationError as error:
        raise RolloutError(error.what, row=row, field="url", cure=SERVED) from None
