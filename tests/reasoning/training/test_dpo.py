"""DPO end to end on the trained checkpoint: both models hear, and the loss is what its parts say."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from trl import DPOConfig

from data_builders.pair_file import Pair, made_of, write_pairs
from data_builders.rows import read_corpus, split_clips
from launch.dpo import main
from reasoning.distributions import kl_bits, normalize_votes
from reasoning.errors import ConfigError, RowError
from reasoning.inference.engine import Request
from reasoning.inference.transformers_engine import TransformersEngine
from reasoning.models.loading import add_adapter, load_model, record_base
from reasoning.models.memory import batch_heard
from reasoning.models.prompter import Prompter
from reasoning.response import ShareGrid, write_response
from reasoning.training.dpo import AudioDPOTrainer
from reasoning.training.pairs import PairCollator
from reasoning.training.run_folder import last_whole_checkpoint

CONFIG = str(Path(__file__).parents[3] / "launch" / "configs" / "dpo.yaml")


def answers(clip, emotions) -> dict[str, str]:
    """The clip's votes against those of the emotion that is three places further, as answers with one vote in both."""
    right = normalize_votes(clip.votes)[0].tolist()
    vote = emotions.names[clip.votes.index(max(clip.votes))]
    return {
        "chosen": write_response(right, vote, emotions, grid=ShareGrid(10)),
        "rejected": write_response(right[-3:] + right[:-3], vote, emotions, grid=ShareGrid(10)),
    }


@pytest.fixture(scope="module")
def corpus(trained_checkpoint):
    return read_corpus(trained_checkpoint.corpus)


@pytest.fixture(scope="module")
def rows(corpus):
    """A pair for each of twelve clips of speakers that the checkpoint was not trained on."""
    return [
        {
            "id": c.id, "audio": str(corpus.root / c.audio), "transcript": c.transcript, "votes": list(c.votes),
            **answers(c, corpus.info.emotions),
        }
        for c in split_clips(corpus, 0)["test"][:12]
    ]  # fmt: skip


@pytest.fixture(scope="module")
def adapter(trained_checkpoint, tmp_path_factory) -> Path:
    """A saved adapter, projector included, that changes what the checkpoint says."""
    loaded = load_model(trained_checkpoint.model)
    torch.manual_seed(1)
    loaded = add_adapter(loaded, r=2, alpha=4, dropout=0.0, train_projector=True)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp("adapter")
    loaded.model.save_pretrained(folder)
    record_base(folder, loaded)
    return folder


@pytest.fixture
def make(trained_checkpoint, corpus, rows, adapter, tmp_path):
    """A trainer that starts from the adapter, over the twelve pairs unless told otherwise."""

    def build(kl_weight=0.0, pairs=None, **dpo):
        loaded = load_model(trained_checkpoint.model, adapter, trainable=True)
        args = DPOConfig(str(tmp_path), **{
            "per_device_train_batch_size": 4, "use_cpu": True, "bf16": False, "activation_checkpointing": False,
            "report_to": [], "seed": 1, "save_strategy": "no", "learning_rate": 1e-3, "lr_scheduler_type": "constant",
            "dataloader_pin_memory": False, "logging_steps": 1,
        } | dpo)  # fmt: skip
        collator = PairCollator(Prompter(loaded, corpus.info.emotions), loaded.memory(), level="no_think")
        trainer = AudioDPOTrainer(loaded, collator, rows=pairs or rows, kl_weight=kl_weight, args=args)
        trainer.loaded = loaded
        return trainer

    return build


def measured(trainer, rows) -> dict[str, float]:
    """The loss of one batch and what is logged of it; `ref_logps/...`: the reference's, from policy and reward."""
    trainer._metrics["train"].clear()
    trainer.model.train()
    loss = trainer._compute_loss(trainer.model, trainer.data_collator(rows))
    logged = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    for side in ("chosen", "rejected"):
        logged[f"ref_logps/{side}"] = logged[f"logps/{side}"] - logged[f"rewards/{side}"] / trainer.beta
    return {"loss": loss.item(), **logged}


def shifted(trainer, change=0.3) -> None:
    """Move the policy away from its reference."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter += change * parameter.std() * torch.randn_like(parameter)


def naive_logps(trainer, row, side) -> tuple[float, int]:
    """Log-probability of one answer without its vote from the model's full logits on one unpadded row, and tokens."""
    prompter, memory = trainer.data_collator.prompter, trainer.data_collator.memory
    heard = memory.hear([Path(row["audio"])])
    prompt = prompter.prompt_ids(row["transcript"], heard[0], "no_think")
    answer = [*prompter.encode(row[side]), prompter.eos_id]
    ids = torch.tensor([prompt + answer])
    with torch.no_grad():
        audio = batch_heard(heard, memory.family)
        logits = trainer.model(input_ids=ids, attention_mask=torch.ones_like(ids), **audio).logits[0]
    before, _, rest = row[side].partition("Vote:")
    start = len(prompter.encode(before + "Vote:"))
    silent = range(start, start + len(prompter.encode(rest.split("\n")[0])))
    logs = torch.log_softmax(logits, dim=-1)
    at = [len(prompt) + i for i in range(len(answer)) if i not in silent]
    return sum(float(logs[i - 1, ids[0, i]]) for i in at), len(at)


def test_policy_and_reference_lose_over_five_nats_an_answer_when_the_audio_is_of_another_emotion(make, rows):
    trainer = make()
    swapped = [{**row, "audio": rows[(i + 1) % 6]["audio"]} for i, row in enumerate(rows[:6])]
    deceived = measured(trainer, swapped)
    heard = measured(trainer, rows[:6])
    for side in ("logps/chosen", "ref_logps/chosen"):
        assert heard[side] - deceived[side] > 5, side


def test_the_reference_is_the_adapter_that_training_starts_from_projector_included_and_stays_it(make, rows):
    trainer = make()
    start = measured(trainer, rows)
    assert start["ref_logps/chosen"] == pytest.approx(start["logps/chosen"], abs=1e-3)
    assert start["ref_logps/rejected"] == pytest.approx(start["logps/rejected"], abs=1e-3)
    shifted(trainer, change=1.0)
    moved = measured(trainer, rows)
    assert abs(moved["logps/chosen"] - start["logps/chosen"]) > 0.05
    assert moved["ref_logps/chosen"] == pytest.approx(start["ref_logps/chosen"], abs=1e-3)
    names = [name for name, _ in trainer.model.named_parameters()]
    assert any("projector" in name and ".ref." in name for name in names)


def test_log_probabilities_are_those_of_the_full_logits_without_the_votes_tokens(make, rows):
    trainer = make()
    shifted(trainer)
    logged = measured(trainer, rows[:3])
    for side in ("chosen", "rejected"):
        expected = sum(naive_logps(trainer, row, side)[0] for row in rows[:3]) / 3
        assert logged[f"logps/{side}"] == pytest.approx(expected, abs=1e-3)


def test_the_loss_is_sigmoid_plus_weighed_sft_plus_weighed_kl(make, rows, corpus):
    trainer = make(kl_weight=0.5, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.25], beta=0.2)
    shifted(trainer)
    logged = measured(trainer, rows[:1])
    margin = logged["rewards/chosen"] - logged["rewards/rejected"]
    assert logged["rewards/margins"] == pytest.approx(margin, abs=1e-6)
    assert abs(margin) > 1e-3
    nats, tokens = naive_logps(trainer, rows[0], "chosen")
    sigmoid = math.log1p(math.exp(-margin))
    assert logged["loss"] == pytest.approx(sigmoid - 0.25 * nats / tokens + 0.5 * logged["vote_kl"], abs=1e-4)


def test_the_kl_is_that_of_the_label_readout_which_evaluation_takes(make, rows, corpus):
    """On audio of other clips, so that readout and votes are far apart."""
    trainer = make(kl_weight=1.0)
    asked = [{**row, "audio": rows[(i + 1) % 6]["audio"]} for i, row in enumerate(rows[:4])]
    logged = measured(trainer, asked)
    requests = [Request(r["id"], Path(r["audio"]), r["transcript"]) for r in asked]
    engine = TransformersEngine(trainer.loaded, corpus.info.emotions)
    read_out = [scores.probabilities for scores in engine.score_labels(requests)]
    expected = kl_bits(normalize_votes([r["votes"] for r in asked]), read_out, floor=0).mean() * math.log(2)
    assert logged["vote_kl"] == pytest.approx(expected, rel=1e-3)
    assert expected > 1


def test_training_prefers_the_chosen_moves_language_model_and_projector_only_and_encodes_each_clip_once(make, rows):
    twice = [*rows, *({**row, "rejected": row["rejected"].replace("Vote: ", "Vote: un")} for row in rows)]
    trainer = make(kl_weight=0.1, pairs=twice, num_train_epochs=3, beta=0.5)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    start = measured(trainer, rows)
    trainer.train()
    end = measured(trainer, rows)
    assert end["rewards/margins"] > 0.5
    assert end["logps/chosen"] - end["logps/rejected"] > start["logps/chosen"] - start["logps/rejected"] + 1
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert {name for name in moved if "language_model" in name}
    assert {name for name in moved if "projector" in name}
    assert all(".default." in name for name in moved)
    assert not [name for name, p in trainer.model.named_parameters() if ".ref." in name and p.requires_grad]
    assert trainer.data_collator.memory.passes == len(rows)


def test_a_projector_that_is_frozen_has_no_gradient_after_the_reference_was_asked(make, rows):
    trainer = make(pairs=rows[:4])
    trainer.loaded.projector.requires_grad_(False)
    learning = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    for _ in range(2):
        trainer._compute_loss(trainer.model, trainer.data_collator(rows[:4])).backward()
    assert {name for name, p in trainer.model.named_parameters() if p.requires_grad} == learning
    assert {name for name, p in trainer.model.named_parameters() if p.grad is not None} == learning


def test_gradient_accumulation_gives_the_step_of_the_whole_batch(make, rows):
    trained = []
    for size in (4, 2):
        trainer = make(
            kl_weight=0.5, pairs=rows[:4], per_device_train_batch_size=size, gradient_accumulation_steps=4 // size,
            max_steps=1, optim="sgd", learning_rate=0.1, max_grad_norm=0.0,
        )  # fmt: skip
        trainer.train()
        trained.append({name: p.detach() for name, p in trainer.model.named_parameters() if p.requires_grad})
    start = make()
    assert any(not torch.equal(p, trained[0][n]) for n, p in start.model.named_parameters() if p.requires_grad)
    for name, parameter in trained[0].items():
        torch.testing.assert_close(parameter, trained[1][name], atol=1e-5, rtol=1e-3)


# --- the command


@pytest.fixture(scope="module")
def pairs_file(corpus, tmp_path_factory) -> Path:
    train = split_clips(corpus, 0)["train"][:16]
    pairs = [
        Pair(c.id, "own", **answers(c, corpus.info.emotions), chosen_bits=0.0, rejected_bits=0.8, chosen_tokens=60,
             rejected_tokens=60, votes=c.votes)
        for c in train
    ]  # fmt: skip
    path = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    write_pairs(path, pairs, made_of(corpus, "no_think"))
    return path


@pytest.fixture
def arguments(trained_checkpoint, adapter, pairs_file):
    def build(out: Path, **changes) -> list[str]:
        options = {
            "config": CONFIG, "model_name_or_path": trained_checkpoint.model, "data": trained_checkpoint.corpus,
            "adapter": adapter, "pairs": pairs_file, "output_dir": out, "max_steps": 4, "logging_steps": 1,
            "save_steps": 2, "report_to": "none", "bf16": "false", "per_device_train_batch_size": 4, "warmup_steps": 0,
            "save_total_limit": 5, "learning_rate": 1e-3,
        } | changes  # fmt: skip
        return [part for key, value in options.items() for part in (f"--{key}", str(value))]

    return build


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_a_killed_run_resumes_to_the_same_adapter_which_loads_alone_and_the_run_logs_every_term(
    arguments, trained_checkpoint, adapter, tmp_path
):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    main(arguments(whole))
    command = [sys.executable, "-m", "launch.dpo", *arguments(killed)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and last_whole_checkpoint(killed) is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    if (killed / "adapter_model.safetensors").exists():
        pytest.skip("the run finished before it could be killed")
    main(arguments(killed))
    a, b, start = weights(whole), weights(killed), weights(adapter)
    assert a.keys() == b.keys() == start.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], start[name]) for name in a)

    steps = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in steps if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    logged = {"logps/chosen", "logps/rejected", "rewards/margins", "rewards/accuracies", "vote_kl"}
    assert all(logged <= line.keys() for line in steps)
    assert {"config.yaml", "environment.json"} <= {path.name for path in whole.iterdir()}
    assert not list(whole.glob("**/ref"))
    loaded = load_model(trained_checkpoint.model, whole)
    assert list(loaded.model.peft_config) == ["default"]
    assert type(loaded.base).__name__ == "Qwen2AudioForConditionalGeneration"


def test_a_fresh_adapter_starts_from_the_base_and_limit_takes_the_pairs_of_the_first_clips(arguments, tmp_path):
    out = tmp_path / "fresh"
    given = arguments(out, max_steps=1, lora_r=2, limit=3, kl_weight=0.5)
    at = given.index("--adapter")
    main(given[:at] + given[at + 2 :])
    line = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
    assert float(line["rewards/margins"]) == pytest.approx(0, abs=1e-4)
    expected = math.log(2) - 0.2 * float(line["logps/chosen"]) / 60 + 0.5 * float(line["vote_kl"])
    assert float(line["loss"]) == pytest.approx(expected, rel=0.1)


@pytest.mark.distributed
def test_two_ranks_give_the_one_process_result(arguments, adapter, tmp_path, on_two_ranks):
    """Half the pairs on each of two CPU ranks: the same adapter within rounding."""
    one, two = tmp_path / "one", tmp_path / "two"
    common = {"max_steps": 2, "save_strategy": "no"}
    main(arguments(one, **common, per_device_train_batch_size=8))
    run = on_two_ranks("launch.dpo", arguments(two, **common, per_device_train_batch_size=4), timeout=300)
    assert run.returncode == 0, run.stderr
    a, b, start = weights(one), weights(two), weights(adapter)
    assert max(float((a[name] - start[name]).abs().max()) for name in a) > 1e-3
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=2e-4, rtol=1e-2)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"precompute_ref_log_probs": "true"}, "precompute_ref_log_probs"),
        ({"activation_checkpointing": "true"}, "activation_checkpointing"),
        ({"use_weighting": "true"}, "use_weighting"),
        ({"dataloader_num_workers": 1}, "dataloader_num_workers: would encode each clip again"),
        ({"kl_weight": -1}, "kl_weight"),
        ({"level": "think"}, "made for level 'no_think', this run has 'think'"),
        ({"pairs": ""}, "pairs: is missing"),
    ],
)
def test_options_that_would_mislead_are_refused_before_anything_is_written(change, says, arguments, tmp_path):
    with pytest.raises(ConfigError, match=says):
        main(arguments(tmp_path / "never", **change))
    assert not (tmp_path / "never").exists()


def test_pairs_about_clips_that_are_held_out_here_are_refused_by_id(arguments, corpus, tmp_path):
    held_out = {clip.id for clip in split_clips(corpus, 2)["test"]}
    with pytest.raises(RowError, match=r"not among the \d+ clips") as refused:
        main(arguments(tmp_path / "never", fold=2))
    assert refused.value.row in held_out | {clip.id for clip in split_clips(corpus, 2)["dev"]}
    assert not (tmp_path / "never").exists()
