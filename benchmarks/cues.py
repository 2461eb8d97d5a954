"""python benchmarks/cues.py --data data/crema_d

How fast are vocal cues measured, and how close are they to Praat's? Seconds of audio per second of one core (CPU time,
so that a busy machine does not count), for the whole measurement and for the pitch tracker alone; with
praat-parselmouth (the extra `praat`, GPL-3) also the distance between our median F0 and Praat's. Writes
benchmarks/results/cues.json and the table of docs/cues.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from data_builders.rows import read_corpus
from reasoning.audio import SAMPLE_RATE, read_audio
from reasoning.cues import measure
from reasoning.files import replace_section, write_atomic
from reasoning.pitch import CEILING_HZ, FLOOR_HZ, HOP_SECONDS, track

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT, RESULTS = ROOT / "docs" / "cues.md", ROOT / "benchmarks" / "results" / "cues.json"


def speed(function: Callable, recordings: list[np.ndarray]) -> float:
    """Seconds of audio that `function` works through in a second of CPU time."""
    function(recordings[0])
    start = time.process_time()
    for samples in recordings:
        function(samples)
    return sum(map(len, recordings)) / SAMPLE_RATE / (time.process_time() - start)


def praat_semitones(samples: np.ndarray) -> float:
    """Distance of our median F0 from that of Praat's `To Pitch (ac)` with the same range and step, semitones."""
    import parselmouth

    sound = parselmouth.Sound(samples.astype(float), SAMPLE_RATE)
    pitch = sound.to_pitch_ac(time_step=HOP_SECONDS, pitch_floor=FLOOR_HZ, pitch_ceiling=CEILING_HZ)
    f0 = pitch.selected_array["frequency"]
    return abs(12 * np.log2(np.nanmedian(track(samples).f0_T) / np.median(f0[f0 > 0])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "crema_d")
    parser.add_argument("--every", type=int, default=10, help="use one clip in so many")
    args = parser.parse_args()
    corpus = read_corpus(args.data)
    recordings = [read_audio(corpus.root / clip.audio) for clip in corpus.clips[:: args.every]]
    record = {
        "corpus": corpus.info.name,
        "clips": len(recordings),
        "seconds": round(sum(map(len, recordings)) / SAMPLE_RATE, 1),
        "measure_x_real_time": round(speed(measure, recordings)),
        "track_x_real_time": round(speed(track, recordings)),
    }
    lines = [f"| seconds of audio a core measures in a second | {record['measure_x_real_time']} |"]
    lines.append(f"| of these, the pitch tracker alone | {record['track_x_real_time']} |")
    if find_spec("parselmouth"):
        away = [praat_semitones(samples) for samples in recordings]
        record["semitones_from_praat"] = {str(q): round(float(np.percentile(away, q)), 2) for q in (50, 90, 95)}
        shown = ", ".join(f"{value:.2f}" for value in record["semitones_from_praat"].values())
        lines.append(f"| semitones between our median F0 and Praat's: median, 90th, 95th percentile | {shown} |")
    write_atomic(RESULTS, json.dumps(record, indent=1) + "\n")
    table = "\n".join([f"| {corpus.info.name}, {record['clips']} clips | |", "|---|---|", *lines, ""])
    replace_section(DOCUMENT, "cues", table)
    print(table)


if __name__ == "__main__":
    main()
