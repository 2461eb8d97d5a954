"""From clip rows to SFT batches: the prompt, its audio, the response with its labels, and the vote slot.

Rows are dicts with `id`, `audio` (absolute path), `transcript` and `votes`; a row may bring the `thinking` to write
before its answer, and the `shares` to write where they are not its votes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reasoning.distributions import normalize_votes
from reasoning.emotions import EmotionSet
from reasoning.errors import RowError
from reasoning.models.memory import AudioMemory, Heard, batch_heard, measured
from reasoning.models.prompter import Prompter
from reasoning.response import HUNDREDTHS, ShareGrid, write_response
from reasoning.training.objective import IGNORE

Row = Mapping[str, Any]


def drawn_vote(row: Row, emotions: EmotionSet, seed: int, epoch: int) -> str:
    """One listener's vote, drawn from the clip's votes: the same for the same (seed, epoch, clip id)."""
    key = hashlib.sha256(f"{seed}/{epoch}/{row['id']}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(key[:8], "little"))
    return emotions.names[int(rng.choice(len(emotions), p=normalize_votes(row["votes"])[0]))]


class AnswerCollator:
    """Rows -> one SFT batch. Set `epoch` before each epoch; it decides which listener's vote is written.

    vote_target: one of objective.VOTE_TARGETS. Returned keys: input_ids, attention_mask, labels (B, L): IGNORE on
    prompt, padding and, unless the drawn vote is the target, the vote's scored tokens;
    input_features and the mask of its frames: the audio; slots (B,): position of the vote's token; votes (B, K).
    Runs in the main process (dataloader_num_workers 0): the memory it fills lives there.
    """

    def __init__(
        self,
        prompter: Prompter,
        memory: AudioMemory,
        *,
        level: str,
        seed: int,
        grid: ShareGrid = HUNDREDTHS,
        vote_target: str = "any_label",
        max_length: int | None = None,
    ) -> None:
        self.prompter, self.memory, self.level, self.seed = prompter, memory, level, seed
        self.grid, self.vote_target, self.max_length = grid, vote_target, max_length
        self.epoch = 0

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        heard = self.memory.hear([Path(r["audio"]) for r in rows], [r["id"] for r in rows])
        made = [self._one(row, h) for row, h in zip(rows, heard, strict=True)]
        longest = max(len(ids) for ids, _, _ in made)
        pad = self.prompter.pad_id
        # Right-padded: the slot's position is then the same in every layer's view of the row.
        return {
            "input_ids": torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _, _ in made]),
            "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _, _ in made]),
            "labels": torch.tensor([lab + [IGNORE] * (longest - len(lab)) for _, lab, _ in made]),
            "slots": torch.tensor([slot for _, _, slot in made]),
            "votes": torch.tensor([list(r["votes"]) for r in rows], dtype=torch.float32),
            **batch_heard(heard, self.prompter.family),
        }

    def refuse_unfit(self, rows: Sequence[Row]) -> None:
        """Raise RowError on a row over max_length, AudioError on a clip too long to hear: before the first step.

        Lengths come from the files' headers, so a row is counted with at most one audio token too many.
        """
        for row in rows:
            self._one(row, measured(Path(row["audio"]), self.prompter.processor.feature_extractor, row["id"]))

    def _one(self, row: Row, heard: Heard) -> tuple[list[int], list[int], int]:
        """(input ids, labels, slot position) of one row."""
        prompter = self.prompter
        prompt = prompter.prompt_ids(row["transcript"], heard, self.level)
        vote = drawn_vote(row, prompter.emotions, self.seed, self.epoch)
        shares = row.get("shares") or normalize_votes(row["votes"])[0].tolist()
        text = write_response(shares, vote, prompter.emotions, row.get("thinking"), self.grid)
        response = [*prompter.encode(text), prompter.eos_id]
        slot = prompter.slot_of(response)
        if slot is None:
            raise RowError("the tokenizer hides the vote slot in the written response", row=row["id"], field="response")
        labels = list(response)
        # What the readout scores is the KL's business; what must follow it, given that, is the cross-entropy's.
        scored = len(prompter.labels.paths[prompter.emotions.index(vote)]) if self.vote_target == "any_label" else 0
        labels[slot : slot + scored] = [IGNORE] * scored
        ids = prompt + response
        if self.max_length is not None and len(ids) > self.max_length:
            raise RowError(
                f"needs {len(ids)} tokens, over max_length {self.max_length}; Equivox never truncates across audio",
                row=row["id"],
                field="audio",
                cure="raise max_length or leave the clip out",
            )
        return ids, [IGNORE] * len(prompt) + labels, len(prompt) + slot
