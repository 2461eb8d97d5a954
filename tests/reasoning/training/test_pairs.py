"""DPO batches: what two answers share, what carries loss, and that nothing is ever cut."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from data_builders.rows import read_corpus
from reasoning.errors import RowError
from reasoning.models.loading import load_model
from reasoning.models.prompter import Prompter
from reasoning.response import write_response
from reasoning.training.pairs import PairCollator


@pytest.fixture(scope="module")
def ready(trained_checkpoint):
    corpus = read_corpus(trained_checkpoint.corpus)
    loaded = load_model(trained_checkpoint.model)
    shares = [0.5, 0.5, 0, 0, 0, 0]
    rows = [
        {
            "id": c.id, "audio": str(corpus.root / c.audio), "transcript": "a tone" * (i + 1), "votes": list(c.votes),
            "chosen": write_response(shares, "disgust", corpus.info.emotions, "Voice: low" if i == 1 else None),
            "rejected": write_response(shares[::-1], "sad", corpus.info.emotions) if i else "I cannot tell",
        }
        for i, c in enumerate(corpus.clips[:3])
    ]  # fmt: skip
    return Prompter(loaded, corpus.info.emotions), loaded.memory(), rows


def test_chosen_and_rejected_share_prompt_and_audio_and_only_answers_without_votes_carry_loss(ready):
    prompter, memory, rows = ready
    batch = PairCollator(prompter, memory, level="no_think")(rows)
    assert {len(batch[name]) for name in ("input_ids", "attention_mask", "completion_mask")} == {6}
    assert {len(batch[name]) for name in ("input_features", "feature_attention_mask", "slots", "votes")} == {3}
    width = int(batch["completion_mask"].any(0).int().argmax())
    assert torch.equal(batch["input_ids"][:3, :width], batch["input_ids"][3:, :width])
    for i in range(6):
        row, side = rows[i % 3], "chosen" if i < 3 else "rejected"
        ids, mask, asked = (batch[name][i] for name in ("input_ids", "attention_mask", "completion_mask"))
        heard = memory.hear([Path(row["audio"])])[0]
        assert ids[:width][mask[:width] == 1].tolist() == prompter.prompt_ids(row["transcript"], heard, "no_think")
        answer = ids[width:][mask[width:] == 1].tolist()
        assert answer[-1] == prompter.eos_id
        assert prompter.tokenizer.decode(answer[:-1]) == row[side]
        silent = prompter.tokenizer.decode(ids[width:][(mask[width:] == 1) & (asked[width:] == 0)])
        assert silent == {"chosen": " disgust", "rejected": " sad" if i % 3 else ""}[side]
        assert not asked[mask == 0].any()
    for i, slot in enumerate(batch["slots"].tolist()):
        assert int(batch["input_ids"][i, slot]) == prompter.labels.steps[0].tokens[1]
    assert batch["votes"].tolist() == [row["votes"] for row in rows]


def test_a_pair_that_does_not_fit_is_refused_with_its_clip_its_length_and_the_limit(ready):
    prompter, memory, rows = ready
    batch = PairCollator(prompter, memory, level="no_think")(rows[:1])
    longest = max(batch["attention_mask"].sum(1).tolist())
    PairCollator(prompter, memory, level="no_think", max_length=longest)(rows[:1])
    says = rf"\[{rows[0]['id']}\] chosen: needs {longest} tokens, over max_length {longest - 1}.*never truncates"
    with pytest.raises(RowError, match=says):
        PairCollator(prompter, memory, level="no_think", max_length=longest - 1)(rows[:1])


def test_a_pair_that_cannot_be_trained_on_is_found_before_training(ready):
    prompter, memory, rows = ready
    longest = int(PairCollator(prompter, memory, level="no_think")(rows)["attention_mask"].sum(1).max())
    PairCollator(prompter, memory, level="no_think", max_length=longest + 1).refuse_unfit(rows)
    with pytest.raises(RowError, match=rf"over max_length {longest - 1}; .*never truncates"):
        PairCollator(prompter, memory, level="no_think", max_length=longest - 1).refuse_unfit(rows)
    with pytest.raises(RowError, match="chosen: has no vote in the answer grammar"):
        PairCollator(prompter, memory, level="no_think").refuse_unfit([*rows, {**rows[0], "chosen": "no idea"}])


def test_a_chosen_answer_that_cannot_be_read_is_refused(ready):
    prompter, memory, rows = ready
    with pytest.raises(RowError, match="chosen: has no vote in the answer grammar: 'I am sad'"):
        PairCollator(prompter, memory, level="no_think")([{**rows[0], "chosen": "I am sad"}])
