"""Whether every clip of a training set fits, asked before the first step and not in the middle of the third hour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from reasoning.audio import SAMPLE_RATE, probe
from reasoning.errors import ModelError
from reasoning.models.memory import Heard, refuse_unheard
from reasoning.models.prompter import Prompter


def most_frames(seconds: float, extractor: Any) -> int:
    """Mel frames of a clip that lasts so long, at most one too many: which it is, resampling's rounding decides."""
    return int(seconds * SAMPLE_RATE / extractor.hop_length) + 2


def refuse_unfit(
    rows: Sequence[Mapping[str, Any]], prompter: Prompter, level: str, new_tokens: int, max_tokens: int
) -> None:
    """Raise ModelError on a clip whose prompt and longest answer exceed max_tokens, AudioError on one too long to hear.

    rows: each with id, audio (a path) and transcript. Lengths come from the files' headers, so a prompt is counted
    with at most one audio token too many. The error names the first clip, its length, the limit and how many do not
    fit; nothing is ever truncated.
    """
    extractor = prompter.processor.feature_extractor
    unfit: list[tuple[str, int]] = []
    for row in rows:
        seconds = probe(row["audio"], row=row["id"])
        refuse_unheard(seconds, extractor, row["id"])
        heard = Heard(torch.empty(0), most_frames(seconds, extractor))
        ids = prompter.prompt_ids(row["transcript"], heard, level)
        if len(ids) + new_tokens > max_tokens:
            unfit.append((row["id"], len(ids)))
    if unfit:
        name, length = unfit[0]
        raise ModelError(
            f"needs {length} prompt tokens and up to {new_tokens} to answer, but {max_tokens} fit, and Equivox never "
            f"truncates a prompt with audio; {len(unfit)} of {len(rows)} clips do not fit",
            row=name,
            field="prompt",
            cure="lower max_completion_length, give vLLM a longer context if it was cut (vllm_max_model_length, or "
            "--max-model-len of `equivox serve`), or leave these clips out",
        )
