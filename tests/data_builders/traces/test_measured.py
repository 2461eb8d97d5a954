"""Measuring a corpus: once for each recording, the same with any number of processes, whatever happened before."""

import os

import numpy as np
import pytest
import soundfile

from data_builders.traces import measured
from data_builders.traces.measured import CACHE_FILE, measure_files, read_cache
from reasoning.audio import read_audio
from reasoning.cues import CUES, measure


@pytest.fixture
def files(tmp_path):
    """Sixteen tones between silences, and a file that is no audio."""
    folder = tmp_path / "audio"
    folder.mkdir()
    paths = {}
    time = np.arange(8000) / 16_000
    for i in range(16):
        sound = np.pad(0.2 * sum(np.sin(2 * np.pi * k * (100 + 3 * i) * time) / k for k in (1, 2, 3, 4)), 4000)
        paths[f"c{i}"] = folder / f"{i}.flac"
        soundfile.write(paths[f"c{i}"], sound, 16_000)
    paths["broken"] = folder / "broken.wav"
    paths["broken"].write_text("<html>not found</html>")
    return paths


def test_a_corpus_measures_as_its_files_do_and_a_broken_file_is_named(files, tmp_path):
    found = measure_files(files, tmp_path, workers=1, progress=False)
    for key in ("c0", "c15"):
        assert found[key] == measure(read_audio(files[key]))
    assert found["c15"].values["pitch"] == pytest.approx(12 * np.log2(1.45), abs=0.05)
    assert found["broken"].gaps == dict.fromkeys(CUES, "unreadable")


def test_what_is_known_by_content_is_not_measured_again(files, tmp_path, monkeypatch):
    first = measure_files(files, tmp_path, workers=1, progress=False)
    asked = []
    monkeypatch.setattr(measured, "measure_file", lambda path: asked.append(path) or measure(read_audio(path)))
    files["renamed"] = files["c3"].rename(files["c3"].with_name("other.flac"))
    del files["c3"]
    again = measure_files(files, tmp_path, workers=1, progress=False)
    assert asked == []
    assert again["renamed"] == first["c3"]
    soundfile.write(files["c0"], 0.5 * read_audio(files["c0"]), 16_000)
    changed = measure_files(files, tmp_path, workers=1, progress=False)
    assert asked == [files["c0"]]
    assert changed["c0"].values["loudness"] == pytest.approx(first["c0"].values["loudness"] - 6.02, abs=0.05)


def test_a_killed_run_keeps_what_it_had_measured(files, tmp_path, monkeypatch):
    monkeypatch.setattr(measured, "SAVE_EVERY", 5)
    real = measured.measure_file

    def killed(path):
        if path.name == "12.flac":
            raise KeyboardInterrupt
        return real(path)

    monkeypatch.setattr(measured, "measure_file", killed)
    with pytest.raises(KeyboardInterrupt):
        measure_files(files, tmp_path, workers=1, progress=False)
    assert len(read_cache(tmp_path)) == 10


def test_a_spoilt_or_older_cache_is_made_again(files, tmp_path, monkeypatch):
    first = measure_files(files, tmp_path, workers=1, progress=False)
    path = tmp_path / CACHE_FILE
    path.write_bytes(path.read_bytes()[:1000])
    assert read_cache(tmp_path) == {}
    assert measure_files(files, tmp_path, workers=1, progress=False) == first
    monkeypatch.setattr(measured, "VERSION", "another")
    assert read_cache(tmp_path) == {}


@pytest.mark.distributed
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_two_processes_measure_the_same(files, tmp_path, monkeypatch):
    monkeypatch.setattr(measured, "PARALLEL_FROM", 10)
    one = measure_files(files, tmp_path / "one", workers=1, progress=False)
    assert measure_files(files, tmp_path / "two", workers=2, progress=False) == one
