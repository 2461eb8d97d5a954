"""GRPO end to end on the trained checkpoint: it hears in every pass, and only what should carries loss."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from trl import GRPOConfig

from data_builders.rows import read_corpus, split_clips
from launch.grpo import main
from reasoning.errors import ConfigError
from reasoning.models.loading import add_adapter, load_model
from reasoning.models.prompter import Prompter
from reasoning.response import write_response
from reasoning.training.grpo import AudioGRPOTrainer
from rewards.distribution import closeness

CONFIG = str(Path(__file__).parents[3] / "launch" / "configs" / "grpo.yaml")
ORDER = "def word_order(completions, votes, **columns):\n    return [float(len(c) % 7) for c in completions]\n"


def arguments(trained, out: Path, **changes) -> list[str]:
    options = {
        "config": CONFIG, "model_name_or_path": trained.model, "data": trained.corpus, "output_dir": out,
        "max_steps": 3, "save_steps": 2, "report_to": "none", "bf16": "false", "num_generations": 4,
        "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "lora_r": 4, "warmup_steps": 0,
        "temperature": 1.3, "min_reward_spread": 0.0, "save_total_limit": 5, "learning_rate": 1e-3,
    } | changes  # fmt: skip
    parts = []
    for key, value in options.items():
        parts += [f"--{key}", *(map(str, value) if isinstance(value, (list, tuple)) else [str(value)])]
    return parts


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def lines(folder: Path) -> list[dict]:
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in read if "reward" in line]


@pytest.fixture(scope="module")
def finished(trained_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("grpo")
    (folder / "mine.py").write_text(ORDER)
    out = folder / "run"
    rewards = ["rewards.distribution:closeness", "rewards.format:format", f"{folder}/mine.py:word_order"]
    main(arguments(trained_checkpoint, out, rewards=rewards, reward_weights=[1, 0.2, 0]))
    return out, rewards


@pytest.fixture
def trainer(trained_checkpoint, tmp_path):
    """An untouched trainer over eight clips, and the rows it was given."""
    corpus = read_corpus(trained_checkpoint.corpus)
    rows = [
        {
            "id": c.id, "audio": str(corpus.root / c.audio), "transcript": c.transcript, "votes": list(c.votes),
            "emotions": list(corpus.info.emotions.names),
        }
        for c in split_clips(corpus, 0)["test"][:8]
    ]  # fmt: skip
    loaded = add_adapter(load_model(trained_checkpoint.model), r=2, alpha=4, dropout=0.0, train_projector=False)

    def make(reward=closeness, grpo=None, **options):
        args = GRPOConfig(
            str(tmp_path), per_device_train_batch_size=16, num_generations=4, max_completion_length=80, use_cpu=True,
            bf16=False, activation_checkpointing=False, report_to=[], scale_rewards="none", seed=1, **(grpo or {}),
        )  # fmt: skip
        chosen = {"kl_weight": 0.0, "min_reward_spread": 0.0} | options
        prompter = Prompter(loaded, corpus.info.emotions)
        return AudioGRPOTrainer(
            loaded, prompter, loaded.memory(), [reward], rows=rows, level="no_think", args=args, **chosen
        )

    return make, rows


def batch_of(rows, clips=4, samples=4):
    return [{**rows[i], "row": i, "prompt": rows[i]["id"]} for i in range(clips) for _ in range(samples)]


def test_a_run_logs_rewards_a_weightless_user_reward_quiet_groups_and_completions(finished):
    out, _ = finished
    logged = lines(out)
    assert [line["step"] for line in logged] == [1, 2, 3]
    for line in logged:
        closeness_mean, format_mean = line["rewards/closeness/mean"], line["rewards/format/mean"]
        assert line["reward"] == pytest.approx(closeness_mean + 0.2 * format_mean, abs=1e-5)
        assert {"rewards/word_order/mean", "groups/quiet", "slots/missing", "reward_spread", "entropy"} <= line.keys()
    table = pq.read_table(sorted((out / "completions").glob("*.parquet"))[-1]).to_pylist()
    assert len(table) == 16
    assert {"clip", "audio", "votes", "completion", "closeness", "format", "advantage"} <= table[0].keys()


def test_an_interrupted_run_resumes_at_a_rollout_boundary_to_the_same_adapter(finished, trained_checkpoint, tmp_path):
    out, rewards = finished
    resumed = tmp_path / "resumed"
    shutil.copytree(out, resumed, ignore=shutil.ignore_patterns("checkpoint-3"))
    (resumed / "adapter_model.safetensors").unlink()
    main(arguments(trained_checkpoint, resumed, rewards=rewards, reward_weights=[1, 0.2, 0]))
    a, b = weights(out), weights(resumed)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert [line["step"] for line in lines(resumed)] == [1, 2, 3]


def test_policy_log_probabilities_fall_by_nats_when_the_audio_is_swapped(trainer):
    """The trained model's own right answers, scored with the right and with another clip's audio."""
    make, rows = trainer
    t = make()
    emotions = t._prompter.emotions
    answers = [
        [*t._prompter.encode(write_response(
            [v / sum(r["votes"]) for v in r["votes"]], emotions.names[max(range(6), key=r["votes"].__getitem__)],
            emotions, digits=1,
        )), t._prompter.eos_id]
        for r in rows[:4]
    ]  # fmt: skip
    heard = t._hear(range(4))
    prompts = [t._prompter.prompt_ids(r["transcript"], h, "no_think") for r, h in zip(rows, heard, strict=False)]

    def logps(clip_rows):
        scores = []
        for prompt, answer, row in zip(prompts, answers, clip_rows, strict=True):
            n = len(t._hear([row])[0].features)
            audio = t._prompter.tokenizer.convert_tokens_to_ids("<|AUDIO|>")
            first = prompt.index(audio)
            rest = [i for i in prompt[first:] if i != audio]
            ids = torch.tensor([prompt[:first] + [audio] * n + rest + answer])
            t._pass_rows = torch.tensor([row])
            with torch.no_grad():
                got, _, _ = t._get_per_token_logps_and_entropies(t.model, ids, torch.ones_like(ids), len(answer))
            scores.append(float(got.sum()))
        return torch.tensor(scores)

    drop = logps([0, 1, 2, 3]) - logps([1, 2, 3, 0])
    assert (drop > 3).all(), drop


def test_generation_hears_and_the_vote_carries_no_policy_loss(trainer):
    make, rows = trainer
    t = make()
    t.model.train()
    out = t._generate_and_score_completions(batch_of(rows))
    readable = t._rewards[t._rewards > 0]
    assert len(readable) >= 4
    assert float(readable.mean()) > 0.95, "what a model that hears samples, and can be read, comes close to the votes"
    assert (out["slots"] >= 0).all()
    for ids, mask, slot in zip(out["completion_ids"], out["tool_mask"], out["slots"], strict=True):
        end = ids[int(slot) :].tolist().index(t._newline)
        assert (mask == 0).nonzero().flatten().tolist() == list(range(int(slot), int(slot) + end))
    assert int(out["num_items_in_batch"]) == int((out["completion_mask"] * out["tool_mask"]).sum())


def test_groups_whose_rewards_agree_leave_advantage_loss_and_denominator(trainer):
    make, rows = trainer

    def agree_on_first_clip(completions, row, **columns):
        return [0.5 if r == 0 else float(i % 2) for i, r in enumerate(row)]

    t = make(agree_on_first_clip, min_reward_spread=0.02)
    t.model.train()
    t.current_gradient_accumulation_steps = 1
    out = t._generate_and_score_completions(batch_of(rows, clips=2))
    assert out["loud"].tolist() == [False] * 4 + [True] * 4
    loud_tokens = (out["completion_mask"] * out["tool_mask"])[4:].sum()
    assert int(out["num_items_in_batch"]) == int(loud_tokens)
    alone = {k: v[4:] if torch.is_tensor(v) and v.dim() else v for k, v in out.items()}
    assert t._compute_loss(t.model, out).item() == pytest.approx(t._compute_loss(t.model, alone).item(), abs=1e-6)

    quiet = make(lambda completions, **columns: [0.5] * len(completions), min_reward_spread=0.02)
    quiet.model.train()
    quiet.current_gradient_accumulation_steps = 1
    loss = quiet._compute_loss(quiet.model, quiet._generate_and_score_completions(batch_of(rows, clips=2)))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in quiet.model.parameters())


def test_the_vote_kl_adds_its_weight_and_skips_answers_without_a_slot(trainer):
    make, rows = trainer
    t = make(kl_weight=0.0)
    t.model.train()
    t.current_gradient_accumulation_steps = 1
    out = t._generate_and_score_completions(batch_of(rows, clips=2))
    plain = t._compute_loss(t.model, dict(out)).item()
    t._kl_weight = 2.0
    with_kl = t._compute_loss(t.model, dict(out)).item()
    kl = t._metrics["train"]["vote_kl"][-1]
    assert with_kl - plain == pytest.approx(2 * kl, rel=1e-4)
    assert 0 < kl < 0.5
    none = {**out, "slots": torch.full_like(out["slots"], -1)}
    assert t._compute_loss(t.model, none).item() == pytest.approx(plain, abs=1e-6)


def test_the_reference_and_the_old_policy_hear_what_the_policy_hears(trainer):
    """Before any update all three are one policy: a pass that missed the audio would show as KL or as a ratio."""
    make, rows = trainer
    t = make(grpo={"beta": 0.1, "num_iterations": 2})
    t.model.train()
    t.current_gradient_accumulation_steps = 1
    out = t._generate_and_score_completions(batch_of(rows))
    t._compute_loss(t.model, dict(out))
    assert t._metrics["train"]["kl"][-1] == pytest.approx(0, abs=1e-6)
    t._pass_rows = torch.tensor([row["row"] for row in batch_of(rows)])
    ids = torch.cat([out["prompt_ids"], out["completion_ids"]], 1)
    mask = torch.cat([out["prompt_mask"], out["completion_mask"]], 1)
    with torch.no_grad():
        now, _, _ = t._get_per_token_logps_and_entropies(t.model, ids, mask, out["completion_ids"].shape[1])
    torch.testing.assert_close(out["old_per_token_logps"], now, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(out["ref_per_token_logps"], now, atol=1e-5, rtol=1e-4)


def test_options_that_would_mislead_are_refused(trained_checkpoint, tmp_path):
    for changes, says in (
        ({"use_vllm": "true"}, "vLLM"),
        ({"activation_checkpointing": "true"}, "activation_checkpointing"),
        ({"reward_weights": [1.0]}, "1 weights for 2 rewards"),
        ({"min_reward_spread": -1}, "min_reward_spread"),
    ):
        with pytest.raises(ConfigError, match=says):
            main(arguments(trained_checkpoint, tmp_path / "never", **changes))
    assert not (tmp_path / "never").exists()
