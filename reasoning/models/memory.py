"""Encode once: while the audio tower is frozen, what it returns for a clip is remembered and reused.

The seam is what the tower returns, before the projector, which may train. `accept_encoded` lets the tower pass such
features through untouched, so every caller (trainers, generation, evaluation) calls the model in the ordinary way with
`input_features` holding features instead of mel frames.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from reasoning.audio import SAMPLE_RATE, probe, read_audio
from reasoning.errors import AudioError
from reasoning.models.families import Family

AudioSource = Path | np.ndarray
"""A file, or float32 mono samples at 16 kHz. Arrays are encoded but not remembered: they have no name."""


@dataclass(frozen=True)
class Heard:
    """One clip as the tower heard it. features: (tokens, d), on the CPU. frames: valid mel frames."""

    features: Tensor
    frames: int


class AudioMemory:
    """Features of clips by path, least recently used ones forgotten beyond `max_gib`.

    passes counts the clips that went through the tower: with enough memory, the number of distinct clips.
    """

    def __init__(self, tower: nn.Module, feature_extractor: Any, family: Family, *, max_gib: float = 8.0) -> None:
        self.tower, self.feature_extractor, self.family = tower, feature_extractor, family
        self.max_bytes = int(max_gib * 2**30)
        self.passes = 0
        self._bytes = 0
        self._heard: OrderedDict[str, Heard] = OrderedDict()

    def hear(self, sources: Sequence[AudioSource], names: Sequence[str] | None = None) -> list[Heard]:
        """What the tower returns for each source; the new ones are encoded in one batch.

        names: clip ids, for errors. Raises AudioError when a file cannot be used or is longer than the model hears.
        """
        names = names or [str(s) if isinstance(s, Path) else f"audio {i}" for i, s in enumerate(sources)]
        keys = [str(s) if isinstance(s, Path) else f"\0{i}" for i, s in enumerate(sources)]
        new = {k: (s, n) for k, s, n in zip(keys, sources, names, strict=True) if k not in self._heard}
        fresh = dict(zip(new, self._encode([*new.values()]), strict=True)) if new else {}
        found = [fresh[k] if k in fresh else self._heard[k] for k in keys]
        for key, heard in fresh.items():
            if not key.startswith("\0"):
                self._remember(key, heard)
        for key in keys:
            if key in self._heard:
                self._heard.move_to_end(key)
        return found

    def _remember(self, key: str, heard: Heard) -> None:
        self._heard[key] = heard
        self._bytes += heard.features.nbytes
        while self._bytes > self.max_bytes and len(self._heard) > 1:
            _, forgotten = self._heard.popitem(last=False)
            self._bytes -= forgotten.features.nbytes

    @torch.no_grad()
    def _encode(self, sources: Sequence[tuple[AudioSource, str]]) -> list[Heard]:
        self.passes += len(sources)
        device = next(self.tower.parameters()).device
        # Whoever asks first, and under whatever autocast, the features remembered are the same.
        with torch.autocast(device.type, enabled=False):
            mel, frames = mel_frames(self.feature_extractor, sources)
            encoded = self.family.encode(self.tower, mel, frames)
        return [Heard(e.detach().cpu().clone(), f) for e, f in zip(encoded, frames, strict=True)]


def mel_frames(feature_extractor: Any, sources: Sequence[tuple[AudioSource, str]]) -> tuple[Tensor, list[int]]:
    """(mel (B, bins, padded frames), valid frames a clip). Raises AudioError on a clip longer than is padded to."""
    samples = [read_audio(s, row=n) if isinstance(s, Path) else s for s, n in sources]
    for wave, (_, name) in zip(samples, sources, strict=True):
        refuse_unheard(len(wave) / SAMPLE_RATE, feature_extractor, name)
    out = feature_extractor(
        samples, sampling_rate=SAMPLE_RATE, return_attention_mask=True, padding="max_length", return_tensors="pt"
    )
    return out["input_features"], out["attention_mask"].sum(-1).tolist()


def refuse_unheard(seconds: float, feature_extractor: Any, row: str) -> None:
    """Raise AudioError when a clip is longer than the model hears."""
    if seconds * SAMPLE_RATE > feature_extractor.n_samples:
        raise AudioError(
            f"lasts {seconds:.1f} s; the model hears at most {feature_extractor.n_samples / SAMPLE_RATE:.0f} s, and "
            "Equivox never truncates audio",
            row=row,
            field="audio",
            cure="leave this clip out or cut it into utterances",
        )


def most_frames(seconds: float, feature_extractor: Any) -> int:
    """Mel frames of a clip that lasts so long, at most one too many: which it is, resampling's rounding decides."""
    return int(seconds * SAMPLE_RATE / feature_extractor.hop_length) + 2


def measured(path: Path, feature_extractor: Any, row: str) -> Heard:
    """A clip's length as its file's header tells it, `most_frames`, without features: enough to count its tokens.

    Raises AudioError when there is no such audio, or it is longer than the model hears.
    """
    seconds = probe(path, row=row)
    refuse_unheard(seconds, feature_extractor, row)
    return Heard(torch.empty(0), most_frames(seconds, feature_extractor))


def accept_encoded(tower: nn.Module) -> None:
    """Make `tower` return features that are already encoded as they are; mel frames go the ordinary way.

    Told apart by the last axis: a tower takes only mel padded to its full length, features end in its width.
    """
    if hasattr(tower, "_hears_features"):
        return
    original: Callable[..., Any] = tower.forward
    width = cast(Any, tower.config).d_model

    def forward(input_features: Tensor, *args: Any, **kwargs: Any) -> Any:
        if input_features.shape[-1] == width:
            return BaseModelOutputWithPooling(last_hidden_state=input_features)  # type: ignore[arg-type]
        return original(input_features, *args, **kwargs)

    tower.forward = forward  # type: ignore[method-assign]
    tower._hears_features = True  # type: ignore[assignment]


def batch_heard(heard: Sequence[Heard], family: Family) -> dict[str, Tensor]:
    """Model inputs for a batch: input_features (B, tokens, d) zero-padded, the family's frames_mask (B, frames)."""
    frames = torch.tensor([h.frames for h in heard])
    features = nn.utils.rnn.pad_sequence([h.features for h in heard], batch_first=True)
    mask = (torch.arange(int(frames.max()))[None] < frames[:, None]).to(torch.long)
    return {"input_features": features, family.frames_mask: mask}
