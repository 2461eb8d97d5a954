"""equivox predict clip.wav [more.wav ...] --model models/seed --adapter runs/mine/grpo [--transcript TEXT] [--json]

Prints how listeners would vote on each file, as the model sees it: both readouts, and its answer word for word.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from launch.cli import run
from launch.engines import add_options, open_engine
from reasoning.emotions import CREMA_D, EmotionSet
from reasoning.errors import ConfigError
from reasoning.prompts import LEVELS, MAX_NEW_TOKENS

if TYPE_CHECKING:
    from reasoning.inference.engine import Engine, Generation, LabelScores, Request

AT_ONCE = 64
BAR = 20


@dataclass(frozen=True)
class FilePrediction:
    """What the model says about one file.

    label, verbalized: emotion -> share; verbalized is None when the answer cannot be used, for `problems`. prefix: what
    the label readout stood on. label_entropy_bits: 0 (sure) to log2 K. text: the answer as written.
    """

    file: str
    duration_s: float
    transcript: str | None
    label: dict[str, float]
    label_entropy_bits: float
    prefix: str
    verbalized: dict[str, float] | None
    vote: str | None
    problems: tuple[str, ...]
    text: str


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="equivox predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="audio: wav, flac, mp3 or ogg")
    add_options(parser)
    parser.add_argument("--transcript", help="the words spoken (one file only); left out of the prompt without it")
    parser.add_argument("--level", choices=LEVELS, default="no_think", help="answer at once, or think first")
    parser.add_argument("--data", type=Path, help="corpus whose emotions are asked for (default: CREMA-D's six)")
    parser.add_argument("--max-new-tokens", type=int, help=f"longest answer, default by level: {MAX_NEW_TOKENS}")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, for programs")
    args = parser.parse_args(argv)
    if args.transcript is not None and len(args.files) > 1:
        cure = "name one file, or leave it out"
        raise ConfigError(f"is one text for {len(args.files)} files", field="--transcript", cure=cure)
    if args.max_new_tokens is not None and args.max_new_tokens < 1:
        raise ConfigError(f"is {args.max_new_tokens}, expected at least 1", field="--max-new-tokens")

    from reasoning.audio import read_audio

    # Decoded before the model is loaded: a bad file should not cost a minute.
    audio = {str(path): read_audio(path) for path in args.files}
    emotions = _emotions(args.data)

    from reasoning.inference.engine import Request

    engine = open_engine(args, emotions).engine
    requests = [Request(name, samples, args.transcript, args.level) for name, samples in audio.items()]
    for found in predict(engine, requests, emotions, args.max_new_tokens or MAX_NEW_TOKENS[args.level]):
        print(json.dumps(asdict(found), ensure_ascii=False) if args.json else as_text(found), flush=True)
    return 0


def _emotions(corpus: Path | None) -> EmotionSet:
    if corpus is None:
        return CREMA_D
    from data_builders.rows import read_corpus

    return read_corpus(corpus).info.emotions


def predict(
    engine: Engine, requests: Sequence[Request], emotions: EmotionSet, max_new_tokens: int
) -> Iterator[FilePrediction]:
    """Both readouts of every request (whose audio is samples), in order. Greedy: the same file, the same answer."""
    # So many at a time that an engine's batches are full and the first answers are soon there.
    for start in range(0, len(requests), AT_ONCE):
        some = requests[start : start + AT_ONCE]
        written = list(engine.generate(some, max_new_tokens=max_new_tokens))
        asked = [replace(request, written=g.text) for request, g in zip(some, written, strict=True)]
        for request, generation, label in zip(some, written, engine.score_labels(asked), strict=True):
            yield _prediction(request, generation, label, emotions)


def _prediction(request: Request, generation: Generation, label: LabelScores, emotions: EmotionSet) -> FilePrediction:
    from reasoning.audio import SAMPLE_RATE
    from reasoning.distributions import entropy_bits
    from reasoning.evaluation.predict import read_generation
    from reasoning.evaluation.predictions import FORCED

    assert request.audio is not None
    assert not isinstance(request.audio, Path)
    reading, problems = read_generation(generation, emotions)
    return FilePrediction(
        file=request.id,
        duration_s=round(len(request.audio) / SAMPLE_RATE, 3),
        transcript=request.transcript,
        label=_shares(label.probabilities, emotions),
        label_entropy_bits=round(float(entropy_bits([label.probabilities])[0]), 3),
        prefix=label.prefix,
        verbalized=None if reading.probabilities is None else _shares(reading.probabilities, emotions),
        vote=reading.vote,
        problems=(*problems, *((FORCED,) if label.forced else ())),
        text=generation.text,
    )


def _shares(probabilities: Sequence[float], emotions: EmotionSet) -> dict[str, float]:
    return {name: round(share, 4) for name, share in zip(emotions.names, probabilities, strict=True)}


def as_text(found: FilePrediction) -> str:
    """The prediction for a terminal: both readouts as bars, then the answer, control characters as escapes."""
    full = "█" if (sys.stdout.encoding or "").lower().startswith("utf") else "#"
    width = max(len(name) for name in found.label)
    head = f"{found.file}  {found.duration_s:.1f} s" + (f'  "{found.transcript}"' if found.transcript else "")
    said = found.verbalized or {}
    title = "verbalized" if found.verbalized else "verbalized: no usable answer"
    lines = [_printable(head), f"{'':{width}}  {f'label ({found.prefix})':{BAR + 6}}  {title}"]
    for name, share in found.label.items():
        beside = f"  {_bar(said[name], full)}" if said else ""
        lines.append(f"{name:{width}}  {_bar(share, full)}{beside}")
    lines.append(f"label readout: {found.label_entropy_bits:.2f} bits of uncertainty")
    lines.append(f"problems: {', '.join(found.problems) or 'none'}")
    lines += ["answer:", *(f"  {line}" for line in _printable(found.text).split("\n"))]
    return "\n".join(lines) + "\n"


def _bar(share: float, full: str) -> str:
    return f"{full * round(share * BAR):{BAR}} {share:.3f}"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


if __name__ == "__main__":
    run(main)
