"""From preference rows to DPO batches: one prompt with its audio for two answers, the chosen and the rejected one.

Rows are clip rows as training/collate.py takes them (`id`, `audio`, `transcript`, `votes`) with `chosen` and `rejected`
texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from reasoning.errors import RowError
from reasoning.models.memory import AudioMemory, batch_heard, measured
from reasoning.models.prompter import Prompter, pad_left
from reasoning.training.collate import Row


class PairCollator:
    """Rows -> one DPO batch of 2B sequences, the B chosen ones first; a clip's audio and prompt serve both of them.

    Returned keys: input_ids, attention_mask, completion_mask (2B, L): prompts padded on the left to one width, answers
    on the right, the completion mask 0 on prompt, padding and vote, so that the first column that it holds a 1 in is
    where answers begin; input_features and the mask of its frames: the B clips' audio; slots (B,): column of the chosen
    answer's vote; votes (B, K). Runs in the main process (dataloader_num_workers 0): the memory it fills lives there.
    """

    def __init__(self, prompter: Prompter, memory: AudioMemory, *, level: str, max_length: int | None = None) -> None:
        self.prompter, self.memory, self.level, self.max_length = prompter, memory, level, max_length
        self._newline = prompter.encode("\n")[0]

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        heard = self.memory.hear([Path(r["audio"]) for r in rows], [r["id"] for r in rows])
        pairs = zip(rows, heard, strict=True)
        prompts = [self.prompter.prompt_ids(row["transcript"], h, self.level) for row, h in pairs]
        chosen = [self._answer(row, "chosen") for row in rows]
        answers = chosen + [self._answer(row, "rejected") for row in rows]
        self._check_lengths(rows, prompts, answers)
        before = {
            "input_ids": pad_left(prompts, self.prompter.pad_id),
            "attention_mask": pad_left([[1] * len(ids) for ids in prompts], 0),
        }
        asked = [self._without_vote(ids, slot) for ids, slot in answers]
        after = {
            "input_ids": _pad_right([ids for ids, _ in answers], self.prompter.pad_id),
            "attention_mask": _pad_right([[1] * len(ids) for ids, _ in answers], 0),
        }
        width = before["input_ids"].shape[1]
        return {
            **{name: torch.cat([before[name].repeat(2, 1), after[name]], dim=1) for name in before},
            "completion_mask": torch.cat([torch.zeros(len(answers), width).long(), _pad_right(asked, 0)], dim=1),
            "slots": torch.tensor([width + int(slot or 0) for _, slot in chosen]),
            "votes": torch.tensor([list(r["votes"]) for r in rows], dtype=torch.float32),
            **batch_heard(heard, self.prompter.family),
        }

    def refuse_unfit(self, rows: Sequence[Row]) -> None:
        """As AnswerCollator.refuse_unfit, of both answers of each pair."""
        for row in rows:
            heard = measured(Path(row["audio"]), self.prompter.processor.feature_extractor, row["id"])
            prompt = self.prompter.prompt_ids(row["transcript"], heard, self.level)
            self._check_lengths([row], [prompt], [self._answer(row, "chosen"), self._answer(row, "rejected")])

    def _answer(self, row: Row, side: str) -> tuple[list[int], int | None]:
        """(token ids with the end of turn, index of the vote's token) of one of a row's two answers."""
        ids = [*self.prompter.encode(row[side]), self.prompter.eos_id]
        slot = self.prompter.slot_of(ids)
        if slot is None and side == "chosen":
            what = f"has no vote in the answer grammar: {row[side][:80]!r}"
            cure = "drop the pair: what is preferred must be an answer that can be read"
            raise RowError(what, row=row["id"], field="chosen", cure=cure)
        return ids, slot

    def _without_vote(self, ids: Sequence[int], slot: int | None) -> list[int]:
        """1 for each token but the vote's: from the slot up to the end of its line."""
        asked = [1] * len(ids)
        if slot is not None:
            rest = list(ids[slot:])
            length = rest.index(self._newline) if self._newline in rest else 1
            asked[slot : slot + length] = [0] * length
        return asked

    def _check_lengths(
        self, rows: Sequence[Row], prompts: Sequence[list[int]], answers: Sequence[tuple[list[int], int | None]]
    ) -> None:
        if self.max_length is None:
            return
        for i, (ids, _) in enumerate(answers):
            row, needed = rows[i % len(rows)], len(prompts[i % len(rows)]) + len(ids)
            if needed > self.max_length:
                raise RowError(
                    f"needs {needed} tokens, over max_length {self.max_length}; Equivox never truncates across audio",
                    row=row["id"],
                    field="chosen" if i < len(rows) else "rejected",
                    cure="raise max_length or drop the pair",
                )


def _pad_right(sequences: Sequence[Sequence[int]], value: int) -> Tensor:
    longest = max(len(s) for s in sequences)
    return torch.tensor([list(s) + [value] * (longest - len(s)) for s in sequences])
