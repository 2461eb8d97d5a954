"""The one way a finished file is written: whole, or not at all; and how a refusing disk is told from other errors."""

from __future__ import annotations

import errno
import os
import re
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


def replace_section(path: Path, name: str, text: str) -> None:
    """Replace what stands in a markdown file between `<!-- NAME -->` and the next `<!-- end -->`; the rest stays.

    Raises StorageError naming the file where it cannot be read or has not one such pair.
    """
    begin, end = f"<!-- {name} -->\n", "<!-- end -->"
    try:
        old = path.read_text(encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot be read: {error.strerror}", row=str(path)) from None
    before, _, rest = old.partition(begin)
    _, ended, after = rest.partition(end)
    if old.count(begin) != 1 or not ended:
        cure = f"put {begin.strip()} and {end} there once, on lines of their own"
        raise StorageError(f"has not one section between {begin.strip()} and {end}", row=str(path), cure=cure)
    body = text.strip("\n")
    write_atomic(path, f"{before}{begin}\n{body}\n\n{end}{after}")


_REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def disk_problem(error: BaseException) -> str | None:
    """What the system said when `error` came of a disk that refuses to be written; None for any other error.

    Python and pyarrow raise OSError. safetensors and tokenizers put "(os error 28)" into exceptions of their own, and
    torch's zip writer only sees that it is not where it should be.
    """
    told = re.search(r"\(os error (\d+)\)", str(error))
    number = error.errno if isinstance(error, OSError) else int(told[1]) if told else None
    if number in _REFUSED:
        return os.strerror(number)
    if isinstance(error, RuntimeError) and "inline_container" in str(error):
        return "torch could not write all of a file"
    return None
