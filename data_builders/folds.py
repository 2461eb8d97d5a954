"""Speaker-disjoint folds and splits: which speakers a model may train on, choose on, and be scored on."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from reasoning.clips import Clip
from reasoning.errors import ConfigError, CorpusError

FOLDS = 5
SEED = 0


def assign_folds(
    clips_of: Mapping[str, int], sex_of: Mapping[str, str | None], folds: int = FOLDS, seed: int = SEED
) -> dict[str, int]:
    """Speaker -> fold in 0..folds-1, every fold about equal in clips and in speakers of each sex.

    clips_of: clips per speaker. sex_of: the sex of each of them (None is a group of its own). Greedy, largest speaker
    first: each goes to the fold that holds the fewest speakers of that sex, and of these to the one with the fewest
    clips; equal speakers come in seeded order. Depends on nothing else: same input, same folds, on every machine.
    Raises CorpusError with fewer speakers than folds, since a fold would be empty.
    """
    if len(clips_of) < folds:
        raise CorpusError(
            f"{len(clips_of)} speakers cannot fill {folds} speaker-disjoint folds",
            field="speaker",
            cure=f"add clips of at least {folds - len(clips_of)} more speakers",
        )
    shuffled = np.random.default_rng(seed).permutation(sorted(clips_of)).tolist()
    shuffled.sort(key=lambda speaker: -clips_of[speaker])
    sizes = Counter(sex_of[speaker] for speaker in shuffled)
    of_sex: dict[tuple[int, str | None], int] = defaultdict(int)
    total = [0] * folds
    chosen: dict[str, int] = {}
    # The larger sex first: the smaller one then also evens out the totals.
    for sex in sorted(sizes, key=lambda s: (-sizes[s], str(s))):
        for speaker in (s for s in shuffled if sex_of[s] == sex):
            fold = min(range(folds), key=lambda f: (of_sex[f, sex], total[f], f))
            chosen[speaker] = fold
            of_sex[fold, sex] += 1
            total[fold] += clips_of[speaker]
    return chosen


def dev_speakers(clips: Sequence[Clip], fold: int, folds: int = FOLDS, seed: int = SEED) -> set[str]:
    """The speakers that choices are made on when `fold` is tested: a seeded half of those of the next fold.

    Half of each sex, rounded up for the first sex and down for the next, so that the half is a half.
    """
    sexes = {clip.speaker: clip.sex for clip in clips if clip.fold == (fold + 1) % folds}
    shuffled = np.random.default_rng((seed, fold)).permutation(sorted(sexes)).tolist()
    shuffled.sort(key=lambda speaker: str(sexes[speaker]))
    return set(shuffled[::2])


def split_of(clips: Sequence[Clip], fold: int, folds: int = FOLDS, seed: int = SEED) -> list[str]:
    """ "train", "dev" or "test" for each clip when `fold` is tested: see `dev_speakers`; the rest trains."""
    dev = dev_speakers(clips, fold, folds, seed)
    return ["test" if clip.fold == fold else "dev" if clip.speaker in dev else "train" for clip in clips]


def place(clips: Sequence[Clip], folds: int = FOLDS, seed: int = SEED) -> list[Clip]:
    """The clips with `fold` set by `assign_folds` and `split` as fold 0's."""
    sex_of = {clip.speaker: clip.sex for clip in clips}
    fold_of = assign_folds(Counter(clip.speaker for clip in clips), sex_of, folds, seed)
    folded = [replace(clip, fold=fold_of[clip.speaker]) for clip in clips]
    splits = split_of(folded, 0, folds, seed)
    return [replace(clip, split=split) for clip, split in zip(folded, splits, strict=True)]


def some_speakers(clips: Sequence[Clip], part: str | None, seed: int = SEED) -> tuple[Clip, ...]:
    """The clips of a part of their speakers, in the order given; all of them for None.

    part: "FROM:TO", shares of the speakers from 0 to 1 in a seeded order that depends on the speakers alone. Parts that
    do not overlap share no speaker: SFT on "0:0.7" never hears those of "0.7:1". Raises ConfigError on another form.
    """
    start, stop = speaker_part(part)
    shuffled = np.random.default_rng((seed, 1)).permutation(sorted({clip.speaker for clip in clips})).tolist()
    chosen = set(shuffled[round(start * len(shuffled)) : round(stop * len(shuffled))])
    return tuple(clip for clip in clips if clip.speaker in chosen)


def speaker_part(part: str | None) -> tuple[float, float]:
    """(from, to) of "FROM:TO", (0, 1) for None. Raises ConfigError unless 0 <= from < to <= 1."""
    if part is None:
        return 0.0, 1.0
    match = re.fullmatch(r"([\d.]+):([\d.]+)", part)
    try:
        start, stop = (float(number) for number in match.groups()) if match else (1.0, 0.0)
    except ValueError:
        start, stop = 1.0, 0.0
    if not 0 <= start < stop <= 1:
        raise ConfigError(f"is {part!r}, expected FROM:TO between 0 and 1, such as 0:0.7", field="speakers")
    return start, stop
