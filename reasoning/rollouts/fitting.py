"""Whether every clip of a training set fits, asked before the first step and not in the middle of the third hour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reasoning.errors import ModelError
from reasoning.models.memory import measured
from reasoning.models.prompter import Prompter


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
        heard = measured(Path(row["audio"]), extractor, row["id"])
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
