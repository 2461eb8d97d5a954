"""Writing is all or nothing."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from reasoning.errors import StorageError
from reasoning.files import disk_problem, drop_unfinished_line, replace_section, whole_lines, write_atomic


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


def test_a_section_is_replaced_between_its_own_marks_and_nothing_else_changes(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A\n\n<!-- a -->\nold\n<!-- end -->\n\n<!-- b -->\nkept\n<!-- end -->\nlast\n")
    replace_section(page, "a", "| new |\n")
    replace_section(page, "a", "| newer |")
    assert page.read_text() == (
        "# A\n\n<!-- a -->\n\n| newer |\n\n<!-- end -->\n\n<!-- b -->\nkept\n<!-- end -->\nlast\n"
    )


@pytest.mark.parametrize(
    "text", ["", "<!-- a -->\n", "<!-- end -->\n<!-- a -->\n", "<!-- a -->\n<!-- a -->\n<!-- end -->\n"]
)
def test_a_page_without_one_such_section_is_left_alone(tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(StorageError, match=r"page\.md\] has not one section between <!-- a --> and <!-- end -->"):
        replace_section(page, "a", "text")
    assert page.read_text() == text
    with pytest.raises(StorageError, match=r"none\.md\] cannot be read: No such file"):
        replace_section(tmp_path / "none.md", "a", "text")


REFUSING = """
import os, resource, sys
import numpy as np, pandas as pd, torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from reasoning.files import disk_problem

os.chdir(sys.argv[1])
vocabulary = {f"token {i}": i for i in range(2000)}
writers = [
    lambda: open("a.json", "w").write("x" * 100_000),
    lambda: pd.DataFrame({"x": np.random.rand(10_000)}).to_parquet("a.parquet"),
    lambda: save_file({"x": torch.zeros(50_000)}, "a.safetensors"),
    lambda: torch.save(torch.zeros(50_000), "a.pt"),
    lambda: Tokenizer(models.WordLevel(vocabulary)).save("tokenizer.json"),
]
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
for write in writers:
    try:
        write()
        print("written")
    except Exception as error:
        print(disk_problem(error))
"""


def test_a_refusing_disk_is_recognised_in_what_every_library_raises_that_writes_a_checkpoint(tmp_path):
    """The kernel refuses to let any file grow beyond 20 kB."""
    run = subprocess.run([sys.executable, "-c", REFUSING, tmp_path], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == [
        "File too large", "File too large", "File too large", "torch could not write all of a file", "File too large",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA out of memory"), FileNotFoundError(2, "No such file"), ValueError("(os error 2)")]
)
def test_other_errors_are_not_the_disks(error):
    assert disk_problem(error) is None
