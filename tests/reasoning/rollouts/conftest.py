"""The folder that a server reads weights from, in this process."""

import pytest

from reasoning.rollouts.worker_extension import FOLDER_VARIABLE


@pytest.fixture
def folder(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
    return folder
