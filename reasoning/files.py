"""The one way a finished file is written: whole, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from reasoning.errors import StorageError


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write `data` so that a kill or a full disk leaves all of it or what `path` held before, and no partial file.

    Text is UTF-8. Missing folders are made. Raises StorageError naming the file when the disk refuses.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        what = f"cannot be written: {error.strerror}"
        raise StorageError(what, row=str(path), cure="free space or choose another folder, then run again") from None
    finally:
        part.unlink(missing_ok=True)


def whole_lines(path: Path) -> list[bytes]:
    """The lines of a file that is appended to, without the unfinished one that a killed run may have left."""
    return path.read_bytes().split(b"\n")[:-1]


def drop_unfinished_line(path: Path) -> None:
    """Cut off what follows the last newline. Only once other lines, or another file, told that this one is ours."""
    unfinished = len(path.read_bytes().split(b"\n")[-1])
    if unfinished:
        os.truncate(path, path.stat().st_size - unfinished)
