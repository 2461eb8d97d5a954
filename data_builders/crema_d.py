"""CREMA-D: 91 actors, 12 sentences, 7,442 clips, each judged by 4 to 12 listeners who heard the voice alone.

    equivox prepare crema_d --root CREMA-D --out data/crema_d

Layout read (the official repository, github.com/CheyneyComputerScience/CREMA-D, or any part of it):
    AudioWAV/1001_DFA_ANG_XX.wav   16 kHz mono; .flac beside or instead of it is read too
    AudioMP3/1001_DFA_ANG_XX.mp3   44.1 kHz, used for clips without a usable wav
    processedResults/tabulatedVotes.csv, VideoDemographics.csv, SentenceFilenames.csv
A clip is named actor_sentence_emotion_level. A row of tabulatedVotes.csv is named queryType * 100000 + stimulus number;
queryType 1 is voice only, the rows used here (2 is face only, 3 both). Licence: ODbL 1.0, contents DbCL 1.0.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from data_builders.folds import place
from data_builders.rows import Corpus, CorpusInfo, describe, reasons, reusable_corpus, write_corpus
from reasoning.audio import SAMPLE_RATE, read_audio
from reasoning.clips import Clip
from reasoning.emotions import CREMA_D
from reasoning.errors import AudioError, CorpusError

NAME, VERSION = "crema_d", "1"
STATEMENT = "acted human speech, human voice-only votes"
LICENCE = "ODbL-1.0 (database), DbCL-1.0 (contents)"
CITATION = (
    "Cao, Cooper, Keutmann, Gur, Nenkova, Verma (2014). CREMA-D: Crowd-sourced Emotional Multimodal Actors Dataset. "
    "IEEE Transactions on Affective Computing 5(4), 377-390. doi:10.1109/TAFFC.2014.2336244"
)

VOTES_TABLE = "processedResults/tabulatedVotes.csv"
ACTORS_TABLE = "VideoDemographics.csv"
STIMULI_TABLE = "SentenceFilenames.csv"
TABLES: Mapping[str, tuple[str, ...]] = {
    VOTES_TABLE: ("", "A", "D", "F", "H", "N", "S", "fileName", "numResponses"),
    ACTORS_TABLE: ("ActorID", "Age", "Sex", "Race", "Ethnicity"),
    STIMULI_TABLE: ("Stimulus_Number", "Filename"),
}
AUDIO_FILES = (("AudioWAV", ".wav"), ("AudioWAV", ".flac"), ("AudioMP3", ".mp3"))
"""Where a clip's audio is looked for, best first."""

VOTE_COLUMNS = ("A", "D", "F", "H", "N", "S")  # in the order of reasoning.emotions.CREMA_D
VOICE_ONLY = 1
INTENTS = {"ANG": "anger", "DIS": "disgust", "FEA": "fear", "HAP": "happy", "NEU": "neutral", "SAD": "sad"}
SENTENCES = {
    "IEO": "It's eleven o'clock.",
    "TIE": "That is exactly what happened.",
    "IOM": "I'm on my way to the meeting.",
    "IWW": "I wonder what this is about.",
    "TAI": "The airplane is almost full.",
    "MTI": "Maybe tomorrow it will be cold.",
    "IWL": "I would like a new alarm clock.",
    "ITH": "I think I have a doctor's appointment.",
    "DFA": "Don't forget a jacket.",
    "ITS": "I think I've seen this before.",
    "TSI": "The surface is slick.",
    "WSI": "We'll stop in a couple of minutes.",
}
WRONG_FOR_RATERS = frozenset({"1076_MTI_NEU_XX", "1076_MTI_SAD_XX", "1064_TIE_SAD_XX", "1064_IEO_DIS_MD"})
"""Clips whose mp3, the file that listeners heard, is empty or holds other takes (official README). Their votes are not
about the recording that the name promises, so they are left out even where the wav is fine."""

_NAME = re.compile(r"(\d{4})_([A-Z]{3})_(ANG|DIS|FEA|HAP|NEU|SAD)_(LO|MD|HI|XX)")
_DOWNLOAD = "git lfs clone https://github.com/CheyneyComputerScience/CREMA-D.git"

Rows = list[dict[str, str]]
LeftOut = dict[str, str]


def left(row: str, reason: str, detail: str = "") -> LeftOut:
    """One entry of CorpusInfo.left_out."""
    return {"row": row, "reason": reason, "detail": detail}


# --- tables


def read_tables(root: Path) -> dict[str, Rows]:
    """The three official tables, each a list of rows. Raises one CorpusError naming every file that is not there, or
    the column that is not."""
    absent = [name for name in TABLES if not (root / name).is_file()]
    if absent:
        known = [folder for folder in ("AudioWAV", "AudioMP3") if (root / folder).is_dir()]
        what = "is a CREMA-D folder without" if known else "is not a CREMA-D folder: it has no"
        raise CorpusError(f"{what} {', '.join(absent)}", row=str(root), field="--root", cure=f"`{_DOWNLOAD}`")
    if not any((root / folder).is_dir() for folder, _ in AUDIO_FILES):
        raise CorpusError("has neither AudioWAV nor AudioMP3", row=str(root), field="--root", cure=f"`{_DOWNLOAD}`")
    return {name: _read_table(root / name, columns) for name, columns in TABLES.items()}


def _read_table(path: Path, columns: tuple[str, ...]) -> Rows:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = [{key: value or "" for key, value in row.items() if key is not None} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CorpusError(f"cannot be read: {error}", row=str(path), cure="restore the official file") from None
    for column in columns:
        if column not in (reader.fieldnames or ()):
            what = f"column is missing; found {reader.fieldnames}"
            raise CorpusError(what, row=str(path), field=column or "(first, unnamed)", cure="restore the official file")
    return rows


@dataclass(frozen=True)
class VoiceVotes:
    """The voice-only votes on one clip; votes in the order of CREMA_D."""

    name: str
    votes: tuple[int, ...]


def voice_votes(tables: Mapping[str, Rows]) -> tuple[list[VoiceVotes], list[LeftOut]]:
    """The usable voice-only vote rows in table order, and those that are not usable with the reason."""
    number_of = {row["Filename"]: row["Stimulus_Number"] for row in tables[STIMULI_TABLE]}
    rows = [row for row in tables[VOTES_TABLE] if row[""].startswith(str(VOICE_ONLY))]
    times = Counter(row["fileName"] for row in rows)
    good: list[VoiceVotes] = []
    bad: list[LeftOut] = []
    for name in [name for name, n in times.items() if n > 1]:
        bad.append(left(name, "duplicate vote rows", f"{times[name]} voice-only rows in {VOTES_TABLE}"))
    for row in (row for row in rows if times[row["fileName"]] == 1):
        name, problem = row["fileName"], _vote_problem(row, number_of)
        if problem:
            bad.append(left(name, *problem))
        else:
            good.append(VoiceVotes(name, tuple(int(row[column]) for column in VOTE_COLUMNS)))
    bad += [left(name, "no voice-only vote row", f"not in {VOTES_TABLE}") for name in number_of if name not in times]
    return good, bad


def _vote_problem(row: Mapping[str, str], number_of: Mapping[str, str]) -> tuple[str, str] | None:
    counts = [row[column] for column in (*VOTE_COLUMNS, "numResponses")]
    if not all(count.isascii() and count.isdigit() for count in counts):
        return "votes are not counts", f"A D F H N S numResponses = {', '.join(counts)}"
    *votes, responses = map(int, counts)
    if sum(votes) != responses:
        return "votes do not add up", f"A..S sum to {sum(votes)}, numResponses is {responses}"
    if responses == 0:
        return "nobody voted", "numResponses is 0"
    number = number_of.get(row["fileName"], "")
    if row[""] != f"{VOICE_ONLY}{number:0>5}":
        return "vote row belongs to another clip", f"row {row['']}, but {STIMULI_TABLE} has number {number or 'none'}"
    return None


# --- audio


@dataclass(frozen=True)
class Audio:
    """A usable recording: path relative to the root, seconds, and a digest of its samples."""

    path: str
    seconds: float
    digest: bytes


def list_audio(root: Path) -> dict[str, list[Path]]:
    """Clip name -> its audio files, best first (see AUDIO_FILES)."""
    found: dict[str, list[Path]] = defaultdict(list)
    for folder, suffix in AUDIO_FILES:
        for path in sorted((root / folder).glob("*")):
            if path.suffix.lower() == suffix:
                found[path.stem].append(path)
    return found


def check_audio(root: Path, name: str, paths: Sequence[Path]) -> Audio | LeftOut:
    """The first of `paths` that decodes to a voice, or why the best of them does not."""
    problems: list[LeftOut] = []
    for path in paths:
        try:
            samples = read_audio(path, row=name)
        except AudioError as error:
            detail = error.what.replace(str(path), path.relative_to(root).as_posix())
            problems.append(left(name, _audio_reason(error.what), detail))
        else:
            digest = hashlib.blake2b(samples.tobytes(), digest_size=16).digest()
            return Audio(path.relative_to(root).as_posix(), len(samples) / SAMPLE_RATE, digest)
    return problems[0]


def _audio_reason(what: str) -> str:
    signs = {"Git-LFS": "Git-LFS pointer", "silent": "silent audio", "lasts": "audio too short", "early": "cut audio"}
    return next((reason for sign, reason in signs.items() if sign in what), "corrupt audio")


def check_all_audio(root: Path, names: Sequence[str]) -> tuple[dict[str, Audio], list[LeftOut]]:
    """Decode the audio of every clip in `names`, in threads (the decoder releases the GIL), with a progress bar."""
    files = list_audio(root)
    present = [name for name in names if name in files]
    bad = [left(name, "no audio file", "neither wav, flac nor mp3") for name in names if name not in files]
    good: dict[str, Audio] = {}
    with ThreadPoolExecutor() as pool:
        results = pool.map(lambda name: check_audio(root, name, files[name]), present)
        bar = tqdm(results, "checking audio", len(present), unit=" clips", disable=None)
        for name, result in zip(present, bar, strict=True):
            if isinstance(result, Audio):
                good[name] = result
            else:
                bad.append(result)
    return _drop_shared_recordings(good, bad), bad


def _drop_shared_recordings(good: dict[str, Audio], bad: list[LeftOut]) -> dict[str, Audio]:
    """`good` without clips that share their samples: one of the names is wrong, and nobody can say which."""
    names_of: dict[bytes, list[str]] = defaultdict(list)
    for name, audio in good.items():
        names_of[audio.digest].append(name)
    for names in names_of.values():
        if len(names) > 1:
            bad += [left(name, "same recording as another clip", " ".join(names)) for name in names]
    return {name: audio for name, audio in good.items() if len(names_of[audio.digest]) == 1}


# --- clips


def build(root: Path) -> tuple[list[Clip], list[LeftOut]]:
    """Every usable clip under `root` with folds and split, and everything that was left out. Raises CorpusError when
    `root` is not CREMA-D, when nothing is usable, or when five folds of speakers cannot be filled."""
    tables = read_tables(root)
    rows, bad = voice_votes(tables)
    actors = {row["ActorID"]: row for row in tables[ACTORS_TABLE]}
    named = {row.name: row for row in rows}
    for name in list(named):
        if problem := _name_problem(name, actors):
            bad.append(left(name, *problem))
            del named[name]
    audio, bad_audio = check_all_audio(root, list(named))
    bad += bad_audio
    accounted = set(named) | {item["row"] for item in bad}
    bad += [left(name, "audio without votes") for name in list_audio(root) if name not in accounted]
    if not audio:
        found = ", ".join(f"{count} x {reason}" for reason, count in reasons(bad).items())
        raise CorpusError(f"no clip is usable: {found}", row=str(root), field="--root", cure="`git lfs pull` there")
    clips = [_clip(row, audio[name], actors[name[:4]]) for name, row in named.items() if name in audio]
    return place(clips), bad


def _name_problem(name: str, actors: Mapping[str, Mapping[str, str]]) -> tuple[str, str] | None:
    match = _NAME.fullmatch(name)
    if match is None or match[2] not in SENTENCES:
        return "unknown name", "expected actor_sentence_emotion_level, such as 1001_DFA_ANG_XX"
    actor = actors.get(match[1])
    if actor is None:
        return "unknown actor", f"{match[1]} is not in {ACTORS_TABLE}"
    if not actor["Age"].isdigit() or actor["Sex"].lower() not in ("male", "female"):
        return "actor without age or sex", f"{ACTORS_TABLE}: {actor['Age']!r}, {actor['Sex']!r}"
    if name in WRONG_FOR_RATERS:
        return "raters heard a wrong file", "known in the official README: the mp3 that was voted on is not this clip"
    return None


def _clip(row: VoiceVotes, audio: Audio, actor: Mapping[str, str]) -> Clip:
    speaker, sentence, intent, level = row.name.split("_")
    return Clip(
        id=row.name,
        audio=audio.path,
        duration_s=audio.seconds,
        transcript=SENTENCES[sentence],
        language="en",
        speaker=speaker,
        sex=actor["Sex"].lower(),
        age=int(actor["Age"]),
        split="train",  # `place` sets fold and split
        fold=0,
        votes=row.votes,
        n_votes=sum(row.votes),
        intended=INTENTS[intent],
        source="human",
        extra={"sentence": sentence, "level": level, "race": actor["Race"], "ethnicity": actor["Ethnicity"]},
    )


def source_tables(root: Path) -> dict[str, str]:
    """sha256 of each table, and one of the audio listing (path, size, time of change): what decides the rows."""
    hashes = {name: hashlib.sha256((root / name).read_bytes()).hexdigest() for name in TABLES}
    listing = hashlib.sha256()
    for path in sorted(path for paths in list_audio(root).values() for path in paths):
        stat = path.stat()
        listing.update(f"{path.relative_to(root).as_posix()}\t{stat.st_size}\t{stat.st_mtime_ns}\n".encode())
    return {**hashes, "audio listing": listing.hexdigest()}


def prepare(root: Path, out: Path) -> tuple[Corpus, bool]:
    """The corpus folder `out` for the CREMA-D copy in `root`, and whether it was already there, built from the same
    tables and audio files by the same builder."""
    read_tables(root)
    tables = source_tables(root)
    if corpus := reusable_corpus(out, NAME, VERSION, tables, root):
        return corpus, True
    clips, left_out = build(root)
    counts = {**describe(clips), "audio": _formats(clip.audio for clip in clips), "left_out": len(left_out)}
    info = CorpusInfo(NAME, CREMA_D, LICENCE, CITATION, "voice only", VERSION, tables, counts, left_out, STATEMENT)
    return write_corpus(out, clips, info, root=root), False


def _formats(paths: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(path.rsplit(".", 1)[-1].lower() for path in paths).items()))
