"""SFT end to end on the trained checkpoint, as a user runs it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from safetensors.torch import load_file, save_file
from trl import SFTConfig

from data_builders.rows import read_corpus, split_clips
from data_builders.traces.trace_file import TraceRow, write_traces
from launch.sft import main
from reasoning.errors import ConfigError, ModelError
from reasoning.models.loading import add_adapter, load_model
from reasoning.models.prompter import Prompter
from reasoning.training.collate import AnswerCollator
from reasoning.training.run_folder import is_finished, last_whole_checkpoint
from reasoning.training.sft import AmbiguitySFTTrainer

CONFIG = str(Path(__file__).parents[3] / "launch" / "configs" / "sft.yaml")


def arguments(trained, out: Path, **changes) -> list[str]:
    options = {
        "config": CONFIG, "model_name_or_path": trained.model, "data": trained.corpus, "output_dir": out,
        "max_steps": 4, "logging_steps": 1, "save_steps": 2, "report_to": "none", "bf16": "false",
        "per_device_train_batch_size": 4, "lora_r": 4, "warmup_steps": 0, "save_total_limit": 5,
        "train_sampling_strategy": "random",
    } | changes  # fmt: skip
    return [part for key, value in options.items() for part in (f"--{key}", str(value))]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def finished(trained_checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("sft") / "run"
    main(arguments(trained_checkpoint, out))
    return out


OWN_SHARES = {"share_target": "readout", "share_parts": 100, "share_floor": 0}
"""In quarters, what this checkpoint's readout says is what the votes say."""


@pytest.fixture(scope="module")
def taught(finished, trained_checkpoint, tmp_path_factory):
    """A run that goes on from `finished` with Shares from its own label readout."""
    out = tmp_path_factory.mktemp("own") / "run"
    main(arguments(trained_checkpoint, out, **OWN_SHARES, adapter=finished))
    return out


def test_a_run_leaves_config_environment_metrics_with_both_terms_and_an_adapter_of_its_base(
    finished, trained_checkpoint
):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    for line in steps:
        assert float(line["loss"]) == pytest.approx(float(line["ce"]) + 0.3 * float(line["vote_kl"]), rel=0.05)
    assert json.loads((finished / "environment.json").read_text())["versions"]["trl"]
    assert (finished / "config.yaml").is_file()
    assert load_model(trained_checkpoint.model, finished).model.peft_config


def test_the_projector_and_only_language_model_layers_are_trained(finished):
    names = list(weights(finished))
    assert any("multi_modal_projector" in n for n in names)
    assert all("language_model" in n or "multi_modal_projector" in n for n in names)
    assert not any("audio_tower" in n for n in names)


def test_an_adapter_is_refused_on_another_base(finished, untrained_checkpoint):
    with pytest.raises(ModelError, match="was trained on"):
        load_model(untrained_checkpoint, finished)


def test_targets_inside_the_frozen_tower_are_an_error(trained_checkpoint):
    with pytest.raises(ModelError, match="frozen audio tower"):
        add_adapter(
            load_model(trained_checkpoint.model), r=2, alpha=4, dropout=0, train_projector=False,
            target_modules=r".*\.q_proj",
        )  # fmt: skip


def test_a_finished_run_is_kept_and_another_configuration_is_refused(finished, trained_checkpoint, capsys):
    before = (finished / "adapter_model.safetensors").stat().st_mtime_ns
    main(arguments(trained_checkpoint, finished))
    assert "nothing to do" in capsys.readouterr().out
    assert (finished / "adapter_model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match=r"another configuration \(kl_weight was 0.3, is 0.5"):
        main(arguments(trained_checkpoint, finished, kl_weight=0.5))


def test_a_mended_command_may_have_the_folder_of_a_mistaken_one(finished, trained_checkpoint, tmp_path):
    out = tmp_path / "run"
    mistaken = arguments(trained_checkpoint, out, adapter=tmp_path / "nowhere")
    with pytest.raises(ModelError, match="nowhere"):
        main(mistaken)
    main(arguments(trained_checkpoint, out, adapter=finished, max_steps=1))
    assert yaml.safe_load((out / "config.yaml").read_text())["adapter"] == str(finished)
    assert is_finished(out)


def test_a_run_does_not_go_on_from_another_adapter_at_the_same_path(finished, trained_checkpoint, tmp_path, capsys):
    adapter, out = shutil.copytree(finished, tmp_path / "adapter"), tmp_path / "run"
    options = arguments(trained_checkpoint, out, adapter=adapter, max_steps=1)
    main(options)
    main(options)
    assert "nothing to do" in capsys.readouterr().out
    other = {name: tensor + 1e-3 for name, tensor in weights(adapter).items()}
    save_file(other, adapter / "adapter_model.safetensors")
    with pytest.raises(ConfigError, match=r"another configuration \(adapter_sha256 was '\w+', is '\w+'"):
        main(options)


def test_a_run_begun_before_an_option_existed_counts_as_one_with_its_default(
    finished, trained_checkpoint, tmp_path, capsys
):
    older = shutil.copytree(finished, tmp_path / "older")
    config = yaml.safe_load((older / "config.yaml").read_text())
    del config["vote_target"], config["clips_sha256"], config["world_size"]
    (older / "config.yaml").write_text(yaml.safe_dump(config))
    main(arguments(trained_checkpoint, older))
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"\(vote_target was 'any_label', is 'drawn_vote'\)"):
        main(arguments(trained_checkpoint, older, vote_target="drawn_vote"))


@pytest.mark.parametrize("own_shares", [False, True])
def test_a_killed_run_resumes_from_its_last_whole_checkpoint_to_the_same_adapter(
    finished, taught, trained_checkpoint, tmp_path, own_shares
):
    out = tmp_path / "killed"
    uninterrupted, changes = (taught, {**OWN_SHARES, "adapter": finished}) if own_shares else (finished, {})
    options = arguments(trained_checkpoint, out, **changes)
    command = [sys.executable, "-m", "launch.sft", *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and last_whole_checkpoint(out) is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    if (out / "adapter_model.safetensors").exists():
        pytest.skip("the run finished before it could be killed")
    (out / "checkpoint-3").mkdir(exist_ok=True)  # what a kill in the middle of writing leaves
    main(options)
    whole, resumed = weights(uninterrupted), weights(out)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_run_stopped_in_its_second_epoch_goes_on_with_the_clips_that_are_left(trained_checkpoint, tmp_path):
    """With the shipped order of clips. Other batches encode a clip with other padding: the same within rounding."""
    changes = {"limit": 16, "max_steps": 8, "save_steps": 3, "train_sampling_strategy": "group_by_length"}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    main(arguments(trained_checkpoint, whole, **changes))
    stopped.mkdir()
    for name in ("config.yaml", "metrics.jsonl"):
        shutil.copy(whole / name, stopped)
    shutil.copytree(whole / "checkpoint-6", stopped / "checkpoint-6")
    main(arguments(trained_checkpoint, stopped, **changes))
    a, b = weights(whole), weights(stopped)
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < 1e-6


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"loss_type": "dft"}, "loss_type: is not served"),
        ({"label_smoothing_factor": 0.5}, "label_smoothing_factor: is not served"),
        ({"dataloader_num_workers": 1}, "dataloader_num_workers: would encode each clip again"),
    ],
)
def test_options_that_nobody_would_read_are_refused(trained_checkpoint, tmp_path, change, says):
    with pytest.raises(ConfigError, match=says):
        main(arguments(trained_checkpoint, tmp_path / "never", **change))
    assert not (tmp_path / "never").exists()


TRACE = "Words: plain\nVoice: high pitch\nAmbiguity: anger and fear\nWeighing: high pitch favours anger and fear"


@pytest.mark.parametrize(
    ("weight", "target"), [(1.0, "any_label"), (0.25, "any_label"), (0.0, "any_label"), (0.25, "drawn_vote")]
)
def test_the_loss_weighs_the_trace_the_answer_and_the_votes_as_the_full_logits_say(
    trained_checkpoint, tmp_path, weight, target
):
    corpus = read_corpus(trained_checkpoint.corpus)
    rows = [
        {
            "id": c.id, "audio": str(corpus.root / c.audio), "transcript": c.transcript, "votes": list(c.votes),
            "thinking": TRACE,
        }
        for c in corpus.clips[:3]
    ]  # fmt: skip
    loaded = add_adapter(load_model(trained_checkpoint.model), r=2, alpha=4, dropout=0.0, train_projector=False)
    prompter = Prompter(loaded, corpus.info.emotions)
    collator = AnswerCollator(prompter, loaded.memory(), level="think", seed=0, vote_target=target)
    batch = collator(rows)
    with torch.no_grad():
        asked = {k: v for k, v in batch.items() if k not in ("labels", "slots", "votes")}
        logs = torch.log_softmax(loaded.base(**asked).logits, -1)
    trace, answer, kl = 0.0, 0.0, 0.0
    for row in range(len(rows)):
        wanted = [i for i in range(batch["labels"].shape[1]) if batch["labels"][row, i] != -100]
        texts = prompter.tokenizer.batch_decode([[t] for t in batch["input_ids"][row].tolist()])
        opening = next(i for i in wanted if "".join(texts[wanted[0] : i + 1]).endswith("</think>\n"))
        for i in wanted:
            loss = -float(logs[row, i - 1, batch["input_ids"][row, i]])
            trace, answer = (trace + loss, answer) if i <= opening else (trace, answer + loss)
        labels = logs[row, int(batch["slots"][row]) - 1, list(prompter.labels.steps[0].tokens)]
        answer -= float(labels.logsumexp(-1)) if target == "any_label" else 0
        votes = batch["votes"][row] / batch["votes"][row].sum()
        read_out = labels - labels.logsumexp(-1)
        kl += float(sum(p * (p.log() - q) for p, q in zip(votes, read_out, strict=True) if p > 0)) / len(rows)
    tokens = int((batch["labels"] != -100).sum())
    args = SFTConfig(str(tmp_path), use_cpu=True, bf16=False, report_to=[], activation_checkpointing=False)
    trainer = AmbiguitySFTTrainer(
        loaded, collator, kl_weight=0.5, trace_weight=weight, args=args, train_dataset=Dataset.from_list(rows)
    )
    assert trace > answer / 4
    found = float(trainer.compute_loss(trainer.model, dict(batch)).detach())
    assert found == pytest.approx((weight * trace + answer) / tokens + 0.5 * kl, rel=1e-4)


def test_an_unknown_target_of_the_vote_slot_is_refused(trained_checkpoint, tmp_path):
    with pytest.raises(ConfigError, match=r"vote_target: is 'hard', expected one of any_label, drawn_vote"):
        main(arguments(trained_checkpoint, tmp_path / "none", vote_target="hard"))


def test_level_think_trains_on_verified_traces_only_and_is_refused_without_any(trained_checkpoint, tmp_path, capsys):
    corpus = read_corpus(trained_checkpoint.corpus)
    train = split_clips(corpus, 0)["train"]
    traces = tmp_path / "traces.parquet"
    kept = [TraceRow(c.id, TRACE, "test", False, "kept", ()) for c in train[:12]]
    rejected = [TraceRow(c.id, TRACE, "test", False, "rejected", ("voice_false",)) for c in train[12:20]]
    write_traces(traces, kept + rejected, corpus)
    with pytest.raises(ConfigError, match=r"traces: is missing: level think.*equivox prepare cot"):
        main(arguments(trained_checkpoint, tmp_path / "none", level="think"))
    with pytest.raises(ConfigError, match=r"traces: is for level think, not no_think"):
        main(arguments(trained_checkpoint, tmp_path / "none", traces=traces))
    assert not (tmp_path / "none").exists()
    out = tmp_path / "think"
    main(arguments(trained_checkpoint, out, level="think", traces=traces, max_steps=2, max_length=600))
    assert f"12 of {len(train)} training clips have a verified trace" in capsys.readouterr().out
    steps = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines() if '"trace_ce"' in x]
    assert len(steps) == 2
    assert float(steps[1]["trace_ce"]) > 0


def test_a_run_that_teaches_own_shares_goes_on_from_the_adapter_to_another_than_votes_would_give(
    finished, taught, trained_checkpoint, tmp_path
):
    main(arguments(trained_checkpoint, tmp_path / "votes", share_parts=100, share_floor=0, adapter=finished))
    before, own, votes = weights(finished), weights(taught), weights(tmp_path / "votes")
    assert before.keys() == own.keys() == votes.keys()
    for other in (before, votes):
        assert any(not torch.equal(other[name], own[name]) for name in own)


def test_shares_cannot_be_taught_from_a_readout_that_nothing_has_trained_or_that_is_in_pieces(
    finished, trained_checkpoint, tmp_path, monkeypatch
):
    own = dict(share_target="readout")
    with pytest.raises(ConfigError, match=r"share_target: is readout, which an untrained model has none of.*--adapter"):
        main(arguments(trained_checkpoint, tmp_path / "none", **own))
    monkeypatch.setattr("launch.own_shares.is_fsdp_enabled", lambda: True)
    with pytest.raises(ConfigError, match=r"share_target: .*FSDP and ZeRO-3.*ddp\.yaml"):
        main(arguments(trained_checkpoint, tmp_path / "none", adapter=finished, **own))
    with pytest.raises(ConfigError, match=r"share_target: is 'mean', expected one of votes, readout"):
        main(arguments(trained_checkpoint, tmp_path / "none", share_target="mean"))
    assert not (tmp_path / "none").exists()


@pytest.mark.distributed
@pytest.mark.parametrize("share_target", ["votes", "readout"])
def test_two_ranks_give_the_one_process_result(finished, trained_checkpoint, tmp_path, on_two_ranks, share_target):
    """Half the batch on each of two CPU ranks: the same clips, the same loss, the same adapter within rounding."""
    common = dict(max_steps=2, save_strategy="no", lora_r=2)
    common |= {**OWN_SHARES, "adapter": finished, "lora_r": 4} if share_target == "readout" else {}
    one, two = tmp_path / "one", tmp_path / "two"
    main(arguments(trained_checkpoint, one, **common, per_device_train_batch_size=8))
    run = on_two_ranks("launch.sft", arguments(trained_checkpoint, two, **common), timeout=300)
    assert run.returncode == 0, run.stderr
    a, b = weights(one), weights(two)
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=2e-4, rtol=1e-2)
    losses = [
        [float(json.loads(x)["loss"]) for x in (run / "metrics.jsonl").read_text().splitlines() if '"loss"' in x]
        for run in (one, two)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
