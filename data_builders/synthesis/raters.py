"""Simulated raters: a stated model of how votes come about, with nothing learned from people.

Rater r hears clip i's prosody through noise and votes once. With z_i the clip's settings as said and c_k the prototype
of emotion k (both from prosody.to_units, so relative to the speaker's own neutral voice):

    heard_ir = z_i + h_ir,    h_ir ~ N(0, HEARING^2) for each setting, drawn for each rater and clip
    P(vote = k) = softmax_k(bias_rk - SHARPNESS * ||heard_ir - c_k||^2),    bias_rk ~ N(0, BIAS^2), fixed for a rater

SHARPNESS is set so that the votes disagree about as much as those of CREMA-D's listeners (mean entropy 1.3 bits). What
the model leaves out: raters know every speaker's neutral voice exactly, do not hear words, do not tire, share one idea
of what each emotion sounds like, and judge the settings, not the sound that the synthesizer made of them.
"""

from __future__ import annotations

import numpy as np

from data_builders.synthesis.prosody import Array, prototypes_in_units

SHARPNESS = 0.3
HEARING = 0.35
BIAS = 0.5
POOL = 24
"""Raters in the studio; each clip is judged by some of them."""
PER_CLIP = (8, 12)


class Raters:
    """A seeded pool of POOL simulated raters for the emotions in `names`."""

    def __init__(self, names: tuple[str, ...], seed: int) -> None:
        self.prototypes_KD = prototypes_in_units(names)
        self.bias_RK = np.random.default_rng([seed, 1]).normal(0, BIAS, (POOL, len(names)))

    def probabilities(self, heard_RD: Array, bias_RK: Array) -> Array:
        """Shape (R, K): how likely each rater is to vote for each emotion, given what each of them heard."""
        distance_RK = ((heard_RD[:, None, :] - self.prototypes_KD[None]) ** 2).sum(axis=-1)
        logits_RK = bias_RK - SHARPNESS * distance_RK
        odds_RK = np.exp(logits_RK - logits_RK.max(axis=1, keepdims=True))
        return odds_RK / odds_RK.sum(axis=1, keepdims=True)

    def vote(self, z_D: Array, rng: np.random.Generator) -> tuple[int, ...]:
        """Votes per emotion of 8 to 12 different raters on a clip with settings `z_D`."""
        judges = rng.choice(POOL, size=int(rng.integers(PER_CLIP[0], PER_CLIP[1] + 1)), replace=False)
        heard_RD = z_D + rng.normal(0, HEARING, (len(judges), len(z_D)))
        cumulative_RK = self.probabilities(heard_RD, self.bias_RK[judges]).cumsum(axis=1)
        chosen_R = (rng.random((len(judges), 1)) > cumulative_RK[:, :-1]).sum(axis=1)
        return tuple(np.bincount(chosen_R, minlength=len(self.prototypes_KD)).tolist())
