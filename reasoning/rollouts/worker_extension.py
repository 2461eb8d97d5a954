"""What `equivox serve --rollouts FOLDER` mixes into vLLM's worker, so that a server takes weights while it runs.

Nothing is unpickled: tensors come as safetensors files from one folder, named when the server is started and by nobody
who asks it, or as bytes from a group that meets in that folder.
"""

from __future__ import annotations

import os
import secrets
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from reasoning.errors import EquivoxError, ModelError
from reasoning.rollouts.adapters import fits, is_lora, weight_of
from reasoning.rollouts.broadcast import Announced, Arriving, meeting_file, number_type
from reasoning.rollouts.group import Group, device_name, join
from reasoning.rollouts.receiving import checksum, receive

FOLDER_VARIABLE = "EQUIVOX_ROLLOUTS"
"""Environment variable of the server: the one folder that weights are read from."""

BOOT = secrets.token_hex(8)
"""Tells this process from the one that takes its place after a restart."""

INCOMPLETE = "incomplete"
"""Held where a load failed in its middle."""


class TensorFiles(Mapping[str, Tensor]):
    """Name -> tensor in safetensors files, read when it is asked for. Raises ModelError on a file that is none."""

    def __init__(self, files: list[Path]) -> None:
        self._file: dict[str, Any] = {}
        for path in files:
            try:
                file = safe_open(path, "pt")
            except (OSError, SafetensorError) as error:
                raise ModelError(f"cannot be read: {error}", row=str(path)) from None
            self._file |= dict.fromkeys(file.keys(), file)

    def __getitem__(self, name: str) -> Tensor:
        return self._file[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file)

    def __len__(self) -> int:
        return len(self._file)

    def shape(self, name: str) -> tuple[int, ...]:
        """Without reading the tensor."""
        return tuple(self._file[name].get_slice(name).get_shape())


class WeightReceiver:
    """Methods that vLLM's worker gets beside its own; `/collective_rpc` calls them by name."""

    model_runner: Any
    vllm_config: Any
    device: torch.device
    rank: int

    held_checksum: str | None = None
    replaced_names: frozenset[str] = frozenset()
    announced_weights: Announced = ()
    weights_group: Group | None = None
    weights_meeting: str = ""

    def report_weights(self) -> dict[str, Any]:
        """boot: of this process. held: checksum of what it was given, None for the checkpoint's. folder. dtype.

        lora_rank: of the adapters that it takes as they are, at most; 0 where it takes none.
        """
        return {
            "boot": BOOT,
            "held": self.held_checksum,
            "folder": os.environ[FOLDER_VARIABLE],
            "dtype": str(self.model_runner.model_config.dtype).removeprefix("torch."),
            "lora_rank": getattr(self.vllm_config.lora_config, "max_lora_rank", 0),
        }

    def receive_files(self, files: list[str], expected: str) -> dict[str, str]:
        """Replace weights by the tensors in `files` of the watched folder; the others are the checkpoint's again.

        expected: their `checksum`. Returns what `answered` does, as an exception would not reach whoever asked with its
        words.
        """

        def take() -> dict[str, str]:
            sent = TensorFiles(watched(Path(os.environ[FOLDER_VARIABLE]), files))
            stored = self._stored()
            refuse_misfits({name: sent.shape(name) for name in sent}, stored)
            arrived = checksum(sent)
            if arrived != expected:
                raise ModelError(f"arrived with checksum {arrived}, sent was {expected}", row=files[0])
            self._replace(sent, stored)
            self.held_checksum = arrived
            return {"checksum": arrived}

        return answered(take)

    def announce_weights(self, announced: Announced) -> dict[str, str]:
        """Refuse what `receive_broadcast` could not load.

        Returns meeting: of the group that this worker is in, "" without one. device: its GPU, or "cpu".
        """

        def look() -> dict[str, str]:
            engines = self.vllm_config.parallel_config.data_parallel_size
            if engines > 1:
                what = f"{engines} engines share this server, and only one of them would get the weights"
                raise ModelError(what, field="data-parallel-size", cure="serve with one, or name another transport")
            refuse_misfits({name: tuple(shape) for name, _, shape in announced}, self._stored())
            for _, dtype, _ in announced:
                number_type(dtype)
            self.announced_weights = announced
            return {"meeting": self.weights_meeting, "device": device_name(self.device)}

        return answered(look)

    def join_group(self, token: str, backend: str, size: int, patience_s: float) -> dict[str, str]:
        """Meet the trainer and the other workers, in place of those of an earlier group."""

        def meet() -> dict[str, str]:
            self.leave_group()
            meeting = meeting_file(Path(os.environ[FOLDER_VARIABLE]), token)
            self.weights_group = join(backend, meeting, 1 + self.rank, size, self.device, patience_s, lambda: False)
            self.weights_meeting = token
            return {}

        return answered(meet)

    def receive_broadcast(self) -> dict[str, str]:
        """Replace weights by those that were announced, as they come; the others are the checkpoint's again."""

        def take() -> dict[str, str]:
            sent, self.announced_weights = self.announced_weights, ()
            stored = self._stored()
            arriving = Arriving(sent, self.weights_group, stored)
            try:
                self._replace(arriving, stored)
            finally:
                if not arriving.complete():
                    self.leave_group()
            arriving.raise_lost()
            self.held_checksum = arriving.checksum()
            return {"checksum": self.held_checksum}

        return answered(take)

    def leave_group(self) -> dict[str, str]:
        """Nothing is left open."""
        group, self.weights_group, self.weights_meeting = self.weights_group, None, ""
        if group is not None:
            group.close()
        return {}

    def _stored(self) -> TensorFiles:
        """The checkpoint that is served."""
        return TensorFiles(sorted(Path(self.model_runner.model_config.model).glob("*.safetensors")))

    def _replace(self, sent: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
        """Have the model hold `sent`, and what it held of an earlier sync as it is stored. Marked as not whole yet."""
        weights = frozenset(name for name in sent if not is_lora(name))  # an adapter stands beside the weights
        again = {name: stored[name] for name in self.replaced_names - weights}
        self.replaced_names |= weights
        self.held_checksum = INCOMPLETE
        self._load_into_model(ChainMap(cast(Any, sent), again))
        self.replaced_names = weights

    def _load_into_model(self, tensors: Mapping[str, Tensor]) -> None:
        from vllm.config import set_current_vllm_config  # pyright: ignore[reportMissingImports]

        with set_current_vllm_config(self.vllm_config):
            receive(self, tensors)


def answered(take: Callable[[], dict[str, str]]) -> dict[str, str]:
    """What `take` returns or, instead of an exception, {"refused": why, "cure": what mends it}."""
    try:
        return take()
    except EquivoxError as error:
        said = EquivoxError(error.what, row=error.row, field=error.field)  # without its cure
        return {"refused": str(said), "cure": error.cure or "look at the server's log"}
    except Exception as error:
        what = f"failed with {type(error).__name__}: {error}"
        return {"refused": what, "cure": "restart the server, whose weights are no longer whole"}


def watched(folder: Path, files: list[str]) -> list[Path]:
    """Where `files` lie in `folder`. Raises ModelError unless each is a plain file right inside it."""
    paths = [folder / name for name in files]
    for name, path in zip(files, paths, strict=True):
        if Path(name).name != name or path.resolve().parent != folder.resolve() or not path.is_file():
            raise ModelError(
                f"is no file in {folder}, the only folder that this server reads weights from",
                row=name,
                field="rollouts",
                cure="name the same folder for the training and for `equivox serve --rollouts`",
            )
    return paths


def refuse_misfits(sent: Mapping[str, tuple[int, ...]], stored: TensorFiles) -> None:
    """Raise ModelError naming the first tensor that the served checkpoint does not have, or has in another shape.

    sent: shapes by name.
    """
    cure = "serve the checkpoint that is trained: `equivox serve --model DIR --rollouts FOLDER`"
    for name in sent:
        weight = weight_of(name)
        if weight not in stored:
            raise ModelError("is no weight of the served checkpoint", row=name, field="weights", cure=cure)
        if not fits(name, sent[name], stored.shape(weight)):
            what = f"has shape {sent[name]}, in the served checkpoint it has {stored.shape(weight)}"
            raise ModelError(what, row=name, field="weights", cure=cure)
