"""Writing is all or nothing."""

from __future__ import annotations

import os

import pytest

from reasoning.errors import StorageError
from reasoning.files import drop_unfinished_line, whole_lines, write_atomic


def test_text_and_bytes_arrive_whole_in_folders_that_did_not_exist(tmp_path):
    write_atomic(tmp_path / "a" / "b.txt", "wört\n")
    write_atomic(tmp_path / "a" / "b.bin", b"\0\1")
    assert (tmp_path / "a" / "b.txt").read_bytes() == "wört\n".encode()
    assert (tmp_path / "a" / "b.bin").read_bytes() == b"\0\1"


def test_a_disk_that_refuses_leaves_the_old_file_no_partial_one_and_one_clear_error(tmp_path, monkeypatch):
    path = tmp_path / "scores.json"
    write_atomic(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"scores\.json.*No space left on device.*free space"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["scores.json"]


@pytest.mark.parametrize("unfinished", [b"", b'{"id": "c', b'{"id": "c"}'])
def test_the_line_that_a_killed_run_was_writing_is_not_read_and_is_cut_off_alone(tmp_path, unfinished):
    path = tmp_path / "kept.jsonl"
    path.write_bytes(b'{"id": "a"}\n{"id": "\xc3\xa9"}\n' + unfinished)
    assert whole_lines(path) == [b'{"id": "a"}', b'{"id": "\xc3\xa9"}']
    assert path.read_bytes().endswith(b"\n" + unfinished)
    drop_unfinished_line(path)
    assert path.read_bytes() == b'{"id": "a"}\n{"id": "\xc3\xa9"}\n'


def test_a_file_without_a_finished_line_has_none(tmp_path):
    path = tmp_path / "kept.jsonl"
    for content in (b"", b'{"id"'):
        path.write_bytes(content)
        assert whole_lines(path) == []
        drop_unfinished_line(path)
        assert path.read_bytes() == b""
