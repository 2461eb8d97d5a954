"""The studio: a corpus made on the spot from SYNTHETIC SPEECH and SIMULATED RATERS, to try everything out without data.

    equivox prepare studio --out data/studio

For each clip a mixture of the six emotions is drawn from a Dirichlet distribution. The mixture sets the prosody (the
mean of the emotions' prototypes, synthesis/prosody.py, plus the speaker's imprecision), hibari-tts says a neutral
sentence that way in one of 15 voices, and simulated raters vote on it (synthesis/raters.py). Scores on this corpus say
whether the machinery works and nothing about how people hear emotion: `intended` is the requested emotion, and the
votes are drawn from a formula.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from data_builders.folds import place
from data_builders.rows import Corpus, CorpusInfo, describe, reusable_corpus, write_corpus
from data_builders.synthesis.hibari import ENGINE, Hibari, Voice
from data_builders.synthesis.prosody import Prosody, from_units, mix, to_units
from data_builders.synthesis.raters import Raters
from reasoning.audio import SAMPLE_RATE, read_audio
from reasoning.clips import Clip
from reasoning.emotions import CREMA_D
from reasoning.errors import AudioError, ConfigError
from reasoning.files import write_atomic

NAME, VERSION = "studio", "1"
STATEMENT = "synthetic speech, simulated raters"
LICENCE = "Apache-2.0 (speech by hibari-tts, sentences and votes by Equivox)"
CITATION = (
    "Made by Equivox's data_builders/studio.py with hibari-tts 0.2.1 (github.com/MMWilliams/hibari), distilled from "
    "Kokoro-82M (huggingface.co/hexgrad/Kokoro-82M)"
)
DEFAULT_CLIPS = 200

CONCENTRATION = 0.25
"""Dirichlet parameter of each emotion: the largest share of a mixture is .72 on average. With raters.SHARPNESS it makes
votes about as mixed as CREMA-D's (mean entropy 1.3 bits; the prior scores .28 jsd_bits, there .29)."""
IMPRECISION = 0.25
"""Standard deviation, in prosody.UNITS, of what the speaker does around what was requested."""

SENTENCES = (
    "The bus stops in front of the library.",
    "There are two chairs next to the window.",
    "The package is on the kitchen table.",
    "He said the meeting starts at ten.",
    "She put the keys in the blue box.",
    "The store closes at nine on Sundays.",
    "We are taking the second road on the left.",
    "They moved the desk to the other room.",
    "I left the folder near the printer.",
    "The train leaves from platform four.",
    "You can read the number on the back.",
    "The paper is in the top drawer.",
)
VOICES = tuple(
    Voice(f"voice{number:02d}", *settings)
    for number, settings in enumerate(
        [
            ("female", 1.00, 0.0, 1.00, 0.0),
            ("male", 0.86, -9.5, 1.00, 0.0),
            ("female", 1.08, 2.0, 1.06, -0.5),
            ("male", 0.80, -12.0, 0.94, 0.4),
            ("female", 0.94, -3.0, 0.95, 0.5),
            ("male", 0.90, -7.0, 1.08, -0.4),
            ("female", 1.04, 3.0, 0.97, 0.4),
            ("male", 0.83, -11.0, 1.04, -0.7),
            ("female", 1.13, 1.0, 1.10, -0.8),
            ("male", 0.88, -8.0, 0.92, 0.7),
            ("female", 0.97, -1.5, 1.04, -0.3),
            ("male", 0.78, -10.0, 1.01, 0.2),
            ("female", 1.02, -2.0, 0.90, 0.8),
            ("male", 0.92, -6.0, 0.98, -0.2),
            ("female", 1.10, 4.0, 1.02, 0.1),
        ],
        start=1,
    )
)
_AUDIO_NAME = re.compile(r"studio-\d{4}-[0-9a-f]{12}\.flac")


@dataclass(frozen=True)
class Recipe:
    """All that decides a clip's sound and votes. mixture: requested share of each emotion, in the order of CREMA_D.
    prosody: as said. noise: seed of the synthesizer."""

    number: int
    text: str
    voice: Voice
    mixture: tuple[float, ...]
    prosody: Prosody
    votes: tuple[int, ...]
    noise: int

    @property
    def audio(self) -> str:
        """Path inside the corpus, with a digest of all that decides the sound: a file of this name (written whole or
        not at all) is this clip and can be kept when a run is repeated."""
        sound = [VERSION, ENGINE, self.text, asdict(self.voice), asdict(self.prosody), self.noise]
        digest = hashlib.sha256(json.dumps(sound, sort_keys=True).encode()).hexdigest()
        return f"audio/studio-{self.number:04d}-{digest[:12]}.flac"


def recipes(clips: int = DEFAULT_CLIPS, seed: int = 0) -> list[Recipe]:
    """The first `clips` recipes of `seed`; clip i is the same however many follow it."""
    raters = Raters(CREMA_D.names, seed)
    return [_recipe(number, seed, raters) for number in range(clips)]


def _recipe(number: int, seed: int, raters: Raters) -> Recipe:
    rng = np.random.default_rng([seed, 2, number])
    mixture = rng.dirichlet([CONCENTRATION] * len(CREMA_D))
    wanted = mix(mixture, CREMA_D.names)
    said = from_units(wanted + rng.normal(0, IMPRECISION, len(wanted)))
    return Recipe(
        number=number,
        # All take turns. Shifted by one after every 60, when voices and sentences would begin to meet again.
        text=SENTENCES[(number + number // math.lcm(len(VOICES), len(SENTENCES))) % len(SENTENCES)],
        voice=VOICES[number % len(VOICES)],
        mixture=tuple(round(float(share), 4) for share in mixture),
        prosody=said,
        votes=raters.vote(to_units(said), rng),
        noise=int(rng.integers(2**31)),
    )


def synthesize(out: Path, made: Sequence[Recipe]) -> list[float]:
    """Say every recipe that is not on disk yet, as 16 kHz mono FLAC under `out`/audio; returns the seconds of each.

    Shows a progress bar. A run that was killed goes on where it stopped. Raises CorpusError when the disk is full.
    """
    engine: Hibari | None = None
    seconds = []
    for recipe in tqdm(made, "synthesizing", unit=" clips", disable=None):
        path = out / recipe.audio
        try:
            samples = read_audio(path)
        except AudioError:
            engine = engine or Hibari()
            samples = engine.say(recipe.text, recipe.voice, recipe.prosody, recipe.noise)
            sink = io.BytesIO()
            soundfile.write(sink, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
            write_atomic(path, sink.getvalue())
        seconds.append(len(samples) / SAMPLE_RATE)
    return seconds


def prepare(out: Path, *, clips: int = DEFAULT_CLIPS, seed: int = 0) -> tuple[Corpus, bool]:
    """The studio corpus in `out`, and whether it was already there.

    Raises ConfigError on an impossible size, CorpusError when `clips` are too few to give every fold a speaker.
    """
    if not 1 <= clips <= 9999 or seed < 0:
        raise ConfigError(f"{clips} clips with seed {seed} cannot be made", cure="ask for 1 to 9999, seed 0 or more")
    made = recipes(clips, seed)
    rows = place([_clip(recipe, seconds=1.0) for recipe in made])  # refuses too few speakers before any work is done
    tables = {"recipes": hashlib.sha256(json.dumps([asdict(r) for r in made]).encode()).hexdigest(), **_engine_files()}
    corpus = reusable_corpus(out, NAME, VERSION, tables)
    if corpus and all((out / clip.audio).is_file() for clip in corpus.clips):
        return corpus, True
    rows = place([_clip(recipe, s) for recipe, s in zip(made, synthesize(out, made), strict=True)])
    counts = {**describe(rows), "seed": seed, "synthesizer": ENGINE}
    task = "simulated, voice only"
    corpus = write_corpus(
        out, rows, CorpusInfo(NAME, CREMA_D, LICENCE, CITATION, task, VERSION, tables, counts, [], STATEMENT)
    )
    _remove_other_takes(out, {recipe.audio for recipe in made})
    return corpus, False


def _clip(recipe: Recipe, seconds: float) -> Clip:
    requested = {f"requested_{name}": share for name, share in zip(CREMA_D.names, recipe.mixture, strict=True)}
    return Clip(
        id=f"studio-{recipe.number:04d}",
        audio=recipe.audio,
        duration_s=seconds,
        transcript=recipe.text,
        language="en",
        speaker=recipe.voice.name,
        sex=recipe.voice.sex,
        age=None,
        split="train",  # `place` sets fold and split
        fold=0,
        votes=recipe.votes,
        n_votes=sum(recipe.votes),
        intended=CREMA_D.names[int(np.argmax(recipe.mixture))],
        source="synthetic",
        synthesizer=ENGINE,
        extra={**requested, **asdict(recipe.prosody)},
    )


def _engine_files() -> dict[str, str]:
    """sha256 of the engine's networks, from the wheel's own record of what it installed."""
    files = [file for file in distribution("hibari-tts").files or [] if file.name in ("hibari.onnx", "oov.onnx")]
    return {file.name: hashlib.sha256(Path(str(file.locate())).read_bytes()).hexdigest() for file in files}


def _remove_other_takes(out: Path, wanted: set[str]) -> None:
    """Delete audio that an earlier run with other settings left behind."""
    for path in (out / "audio").iterdir():
        if _AUDIO_NAME.fullmatch(path.name) and f"audio/{path.name}" not in wanted:
            path.unlink()
