"""Where emotions lie in the plane of valence and arousal: the ground on which the earth mover's distance is measured.

Russell and Mehrabian (1977), Evidence for a three-factor theory of emotions, J. Research in Personality 11(3), 273-294,
doi:10.1016/0092-6566(77)90037-X: mean pleasure and arousal ratings of the terms angry, disgusted, fearful, happy, sad,
surprised and excited, each from -1 to 1; dominance is left out. Copied from later works that quote them and agree with
each other; the paper itself was not at hand. `neutral` is no term of theirs: it stands at the midpoint of both scales.
People rated the words, not voices.
"""

from __future__ import annotations

from collections.abc import Sequence

from reasoning.errors import RewardError

COORDINATES = {
    "anger": (-0.51, 0.59),
    "disgust": (-0.60, 0.35),
    "excited": (0.62, 0.75),
    "fear": (-0.64, 0.60),
    "happy": (0.81, 0.51),
    "neutral": (0.0, 0.0),
    "sad": (-0.63, -0.27),
    "surprise": (0.40, 0.67),
}
"""(valence, arousal) by emotion name."""


def points(names: Sequence[str]) -> list[tuple[float, float]]:
    """(valence, arousal) of each emotion, in the order of `names`. Raises RewardError on a name without a place."""
    for name in names:
        if name not in COORDINATES:
            raise RewardError(
                f"{name!r} has no valence and arousal; known are {', '.join(COORDINATES)}",
                field="emotions",
                cure="reward another distance, or add the emotion with its source to rewards/valence_arousal.py",
            )
    return [COORDINATES[name] for name in names]
