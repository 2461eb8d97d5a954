"""SFT batches: where the slot is, what carries loss, and which listener's vote is written."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from data_builders.rows import read_corpus
from reasoning.errors import RowError
from reasoning.models.loading import load_model
from reasoning.models.prompter import Prompter
from reasoning.response import ShareGrid, read_response
from reasoning.training.collate import IGNORE, AnswerCollator, drawn_vote


@pytest.fixture(scope="module")
def ready(trained_checkpoint):
    corpus = read_corpus(trained_checkpoint.corpus)
    loaded = load_model(trained_checkpoint.model)
    rows = [
        {"id": c.id, "audio": str(corpus.root / c.audio), "transcript": c.transcript, "votes": list(c.votes)}
        for c in corpus.clips[:5]
    ]
    return Prompter(loaded, corpus.info.emotions), loaded.memory(), rows


def test_only_the_response_without_its_vote_carries_loss_and_the_slot_points_at_the_vote(ready):
    prompter, memory, rows = ready
    batch = AnswerCollator(prompter, memory, level="no_think", seed=3)(rows)
    for row, ids, labels, slot in zip(rows, batch["input_ids"], batch["labels"], batch["slots"], strict=True):
        asked = labels != IGNORE
        assert torch.equal(labels[asked], ids[asked])
        start = int(slot) - len(prompter.answer_prefix_ids)
        end = int(asked.nonzero()[-1])
        text = prompter.tokenizer.decode(ids[start:end])
        reading = read_response(text, prompter.emotions)
        assert not reading.problems
        assert reading.vote == drawn_vote(row, prompter.emotions, 3, 0)
        assert ids[end] == prompter.eos_id
        assert ids[slot] in prompter.labels.steps[0].tokens
        silent = [i for i in range(start, end + 1) if not asked[i]]
        assert silent == list(range(int(slot), int(slot) + len(silent)))
        assert prompter.tokenizer.decode(ids[silent]) == f" {reading.vote}"
        assert not asked[:start].any()


def test_where_the_drawn_vote_is_the_target_the_whole_response_carries_loss(ready):
    prompter, memory, rows = ready
    masked, whole = (
        AnswerCollator(prompter, memory, level="no_think", seed=3, vote_target=target)(rows)
        for target in ("any_label", "drawn_vote")
    )
    assert torch.equal(masked["input_ids"], whole["input_ids"])
    differ = masked["labels"] != whole["labels"]
    assert torch.equal(whole["labels"][differ], whole["input_ids"][differ])
    for row, ids, slot, place in zip(rows, whole["input_ids"], whole["slots"], differ, strict=True):
        assert prompter.tokenizer.decode(ids[place]) == f" {drawn_vote(row, prompter.emotions, 3, 0)}"
        assert int(place.nonzero()[0]) == int(slot)


def test_votes_are_drawn_anew_each_epoch_in_proportion_to_the_listeners_and_repeatably(ready):
    prompter, _, rows = ready
    row = {"id": "x", "votes": [0, 3, 0, 0, 1, 0]}
    drawn = Counter(drawn_vote(row, prompter.emotions, 0, epoch) for epoch in range(2000))
    assert set(drawn) == {"disgust", "neutral"}
    assert drawn["disgust"] / 2000 == pytest.approx(0.75, abs=0.04)
    assert [drawn_vote(rows[0], prompter.emotions, 1, e) for e in range(20)] == [
        drawn_vote(rows[0], prompter.emotions, 1, e) for e in range(20)
    ]


def test_a_row_that_does_not_fit_is_refused_never_truncated(ready):
    prompter, memory, rows = ready
    with pytest.raises(RowError, match=rf"\[{rows[0]['id']}\].*never truncates"):
        AnswerCollator(prompter, memory, level="no_think", seed=0, max_length=40)(rows)


def test_what_does_not_fit_is_found_before_training_from_the_headers_of_the_files(ready):
    prompter, memory, rows = ready
    longest = int(AnswerCollator(prompter, memory, level="no_think", seed=0)(rows)["attention_mask"].sum(1).max())
    passes = memory.passes
    AnswerCollator(prompter, memory, level="no_think", seed=0, max_length=longest + 1).refuse_unfit(rows)
    with pytest.raises(RowError, match=rf"over max_length {longest - 1}; .*never truncates"):
        AnswerCollator(prompter, memory, level="no_think", seed=0, max_length=longest - 1).refuse_unfit(rows)
    assert memory.passes == passes


def test_shares_of_one_digit_are_tenths_that_sum_to_one(ready):
    prompter, memory, rows = ready
    batch = AnswerCollator(prompter, memory, level="no_think", seed=0, grid=ShareGrid(10))(rows)
    for ids, slot in zip(batch["input_ids"], batch["slots"], strict=True):
        text = prompter.tokenizer.decode(ids[int(slot) - len(prompter.answer_prefix_ids) :], skip_special_tokens=True)
        shares = read_response(text, prompter.emotions).probabilities
        assert shares is not None
        assert all(round(s * 10, 6).is_integer() for s in shares)


def test_shares_that_a_row_brings_are_written_in_place_of_its_votes_which_stay_the_truth_of_the_kl(ready):
    prompter, memory, rows = ready
    given = [{**row, "shares": [0.0, 0.26, 0.0, 0.0, 0.5, 0.24]} for row in rows]
    own, votes = (
        AnswerCollator(prompter, memory, level="no_think", seed=3, grid=ShareGrid(10))(r) for r in (given, rows)
    )
    assert torch.equal(own["votes"], votes["votes"])
    assert torch.equal(own["slots"], votes["slots"])
    for row, ids, slot in zip(rows, own["input_ids"], own["slots"], strict=True):
        text = prompter.tokenizer.decode(ids[int(slot) - len(prompter.answer_prefix_ids) :], skip_special_tokens=True)
        reading = read_response(text, prompter.emotions)
        assert reading.probabilities == (0.0, 0.3, 0.0, 0.0, 0.5, 0.2)
        assert reading.vote == drawn_vote(row, prompter.emotions, 3, 0)
