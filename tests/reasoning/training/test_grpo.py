"""GRPO end to end on the trained checkpoint: it hears in every pass, and only what should carries loss."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from trl import GRPOConfig

from data_builders.rows import read_corpus, split_clips
from launch.grpo import main
from reasoning.emotions import CREMA_D
from reasoning.errors import ConfigError, RewardError
from reasoning.models.loading import add_adapter, load_model
from reasoning.models.prompter import Prompter
from reasoning.response import PROBLEMS, ShareGrid, read_response, write_response
from reasoning.training.grpo import AudioGRPOTrainer
from rewards.distribution import closeness

CONFIG = str(Path(__file__).parents[3] / "launch" / "configs" / "grpo.yaml")
MINE = """
import asyncio
from pathlib import Path
from typing import Any

def word_order(completions, votes, id, trainer_state, **columns):
    flag = Path(__file__).with_name("fails_on")
    if flag.exists() and trainer_state.global_step == 2 and flag.read_text() in id:
        raise LookupError("the judge is gone")
    return [float(len(c) % 7) for c in completions]

async def seconds(completions, duration_s, **columns):
    await asyncio.sleep(0)
    return [float(s) for s in duration_s]
"""
WEIGHTS = [1, 0.2, 0, 0]


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


def mine(folder: Path) -> list[str]:
    """Two rewards of the package and two of a user's file in `folder`, one of them async."""
    (folder / "mine.py").write_text(MINE)
    user = f"{folder}/mine.py"
    return ["rewards.distribution:closeness", "rewards.format:format", f"{user}:word_order", f"{user}:seconds"]


def completions(out: Path, name: str) -> list[dict]:
    return pq.read_table(out / "completions" / f"{name}.parquet").to_pylist()


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Adapters are compared bit by bit, and with two threads the same run twice differs in the last one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def finished(trained_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("grpo")
    rewards = mine(folder)
    main(arguments(trained_checkpoint, folder / "run", rewards=rewards, reward_weights=WEIGHTS))
    return folder / "run", rewards


@pytest.fixture
def trainer(trained_checkpoint, tmp_path, request):
    """An untouched trainer over eight clips, and its rows. Parameter: whether its adapter has a projector."""
    corpus = read_corpus(trained_checkpoint.corpus)
    rows = [
        {
            "id": c.id, "audio": str(corpus.root / c.audio), "transcript": c.transcript, "votes": list(c.votes),
            "emotions": list(corpus.info.emotions.names),
        }
        for c in split_clips(corpus, 0)["test"][:8]
    ]  # fmt: skip
    projector = getattr(request, "param", False)
    loaded = add_adapter(load_model(trained_checkpoint.model), r=2, alpha=4, dropout=0.0, train_projector=projector)

    def make(reward=closeness, grpo=None, **options):
        args = GRPOConfig(str(tmp_path), **{
            "per_device_train_batch_size": 16, "num_generations": 4, "max_completion_length": 80, "use_cpu": True,
            "bf16": False, "activation_checkpointing": False, "report_to": [], "scale_rewards": "none", "seed": 1,
        } | (grpo or {}))  # fmt: skip
        chosen: dict[str, Any] = {"kl_weight": 0.0, "min_reward_spread": 0.0} | options
        prompter = Prompter(loaded, corpus.info.emotions)
        return AudioGRPOTrainer(
            loaded, prompter, loaded.memory(), [reward], rows=rows, level="no_think", args=args, **chosen
        )

    return make, rows


def batch_of(rows, clips=4, samples=4):
    return [{**rows[i], "row": i, "prompt": rows[i]["id"]} for i in range(clips) for _ in range(samples)]


def test_a_run_logs_every_reward_how_answers_read_quiet_groups_and_completions(finished, trained_checkpoint):
    out, _ = finished
    logged = lines(out)
    assert [line["step"] for line in logged] == [1, 2, 3]
    for line in logged:
        closeness_mean, format_mean = line["rewards/closeness/mean"], line["rewards/format/mean"]
        assert line["reward"] == pytest.approx(closeness_mean + 0.2 * format_mean, abs=1e-5)
        assert {"rewards/word_order/mean", "groups/quiet", "slots/missing", "reward_spread", "entropy"} <= line.keys()
    durations = {clip.id: clip.duration_s for clip in read_corpus(trained_checkpoint.corpus).clips}
    for line in logged:
        table = completions(out, f"completions_{line['step']:05d}")
        assert len(table) == 16
        for row in table:
            reading = read_response(row["completion"], CREMA_D)
            assert row["shares"] == (reading.probabilities and pytest.approx(reading.probabilities))
            assert row["problems"] == ", ".join(reading.problems)
            assert row["seconds"] == pytest.approx(durations[row["clip"]])
            assert Path(row["audio"]).stem == row["clip"]
            assert {"votes", "closeness", "format", "word_order", "advantage"} <= row.keys()
        assert line["parse_rate"] == pytest.approx(sum(not row["problems"] for row in table) / 16)
        for problem in PROBLEMS:
            seen = sum(problem in row["problems"].split(", ") for row in table)
            assert line[f"problems/{problem}"] == pytest.approx(seen / 16)


def test_an_interrupted_run_resumes_at_a_rollout_boundary_to_the_same_adapter(finished, trained_checkpoint, tmp_path):
    out, rewards = finished
    resumed = tmp_path / "resumed"
    shutil.copytree(out, resumed, ignore=shutil.ignore_patterns("checkpoint-3"))
    (resumed / "adapter_model.safetensors").unlink()
    main(arguments(trained_checkpoint, resumed, rewards=rewards, reward_weights=WEIGHTS))
    a, b = weights(out), weights(resumed)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert [line["step"] for line in lines(resumed)] == [1, 2, 3]


def test_a_reward_that_raises_stops_the_run_with_all_saved_and_mended_it_goes_on_to_the_same_adapter(
    finished, trained_checkpoint, tmp_path
):
    """Saving and logging are rarer than the steps here: what is on disk was written because the reward raised."""
    clip = completions(finished[0], "completions_00003")[9]["clip"]
    (tmp_path / "fails_on").write_text(clip)
    out, rewards = tmp_path / "run", mine(tmp_path)
    again = arguments(trained_checkpoint, out, rewards=rewards, reward_weights=WEIGHTS, save_steps=50, logging_steps=50)
    with pytest.raises(RewardError, match="LookupError: the judge is gone") as stopped:
        main(again)
    message = str(stopped.value)
    assert message.startswith(f"[{clip}] word_order: raised")
    line = MINE[: MINE.index("raise LookupError")].count("\n") + 1
    assert f"{tmp_path}/mine.py:{line}" in message
    assert "goes on from checkpoint-2" in message
    rollout = completions(out, "failed_00003")
    blamed = message.partition("the completion '")[2][:20]
    assert blamed in [repr(row["completion"])[1:21] for row in rollout if row["clip"] == clip]
    for row, expected in zip(rollout, completions(finished[0], "completions_00003"), strict=True):
        same = ("clip", "audio", "votes", "completion", "shares", "problems")
        assert {k: row[k] for k in same} == {k: expected[k] for k in same}
        for name in ("closeness", "format", "seconds"):
            assert row[name] == pytest.approx(expected[name], rel=1e-6)
        assert row["word_order"] is None
    assert [line["step"] for line in lines(out)] == [2]
    earlier = [line["reward"] for line in lines(finished[0])[:2]]
    assert lines(out)[0]["reward"] == pytest.approx(sum(earlier) / 2)
    assert len(completions(out, "completions_00002")) == 16

    (tmp_path / "fails_on").unlink()
    main(again)
    a, b = weights(finished[0]), weights(out)
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.distributed
@pytest.mark.slow
def test_a_reward_that_raises_in_one_rank_stops_both_and_keeps_the_rollout_of_both(
    trained_checkpoint, tmp_path, on_two_ranks
):
    (tmp_path / "mine.py").write_text(
        "import os\n\ndef remote(completions, **columns):\n"
        "    if os.environ['RANK'] == '1':\n        raise LookupError('the judge is gone')\n"
        "    return [float(i) for i in range(len(completions))]\n"
    )
    out = tmp_path / "run"
    options = arguments(
        trained_checkpoint, out, rewards=[f"{tmp_path}/mine.py:remote"], reward_weights=[1],
        per_device_train_batch_size=4, gradient_accumulation_steps=1,
    )  # fmt: skip
    run = on_two_ranks("launch.grpo", options, timeout=500)
    assert run.returncode != 0
    assert "remote: raised LookupError: the judge is gone" in run.stderr
    rollout = completions(out, "failed_00001")
    assert [row["remote"] for row in rollout] == [0.0, 1.0, 2.0, 3.0] + [None] * 4
    assert len({row["clip"] for row in rollout}) == 2


@pytest.mark.distributed
@pytest.mark.slow
def test_ranks_with_other_numbers_of_quiet_groups_train_on_together(trained_checkpoint, tmp_path, on_two_ranks):
    """At every other step the rewards of one group agree, on rank 1."""
    (tmp_path / "mine.py").write_text(
        "import os\n\ndef mine(completions, trainer_state, **columns):\n"
        "    quiet = os.environ['RANK'] == '1' and trainer_state.global_step % 2\n"
        "    return [0.5 if quiet and i < 4 else float(i % 2) for i in range(len(completions))]\n"
    )
    out = tmp_path / "run"
    options = arguments(
        trained_checkpoint, out, rewards=[f"{tmp_path}/mine.py:mine"], reward_weights=[1], min_reward_spread=0.02,
        per_device_train_batch_size=8, gradient_accumulation_steps=1, kl_weight=0.2, max_steps=4, loss_type="grpo",
    )  # fmt: skip
    run = on_two_ranks("launch.grpo", options, timeout=500)
    assert run.returncode == 0, run.stderr
    assert [line["groups/quiet"] for line in lines(out)] == [0, 0.25, 0, 0.25]
    assert all(math.isfinite(float(line["vote_kl"])) for line in lines(out))


@pytest.mark.parametrize("loss_type", ["dapo", "bnpo", "grpo", "dr_grpo"])
def test_a_rank_that_keeps_its_quiet_rows_has_the_loss_of_one_that_leaves_them_out(trainer, monkeypatch, loss_type):
    make, rows = trainer

    def agree_on_first_clip(completions, row, **columns):
        return [0.5 if r == 0 else float(i % 3) for i, r in enumerate(row)]

    t = make(agree_on_first_clip, min_reward_spread=0.02, kl_weight=0.3, grpo={"loss_type": loss_type})
    t.model.train()
    t.current_gradient_accumulation_steps = 1
    out = t._generate_and_score_completions(batch_of(rows, clips=3))
    out["advantages"] = out["advantages"] + 1  # or a loss at ratio 1 is 0 whatever it is divided by
    left_out = t._compute_loss(t.model, dict(out)).item()
    monkeypatch.setattr(t, "_alone", lambda: False)
    assert abs(left_out) > 0.1
    assert t._compute_loss(t.model, dict(out)).item() == pytest.approx(left_out, rel=1e-5)


@pytest.mark.parametrize("trainer", [True], indirect=True)
def test_a_projector_that_is_frozen_stays_so_where_a_reference_is_asked(trainer):
    make, rows = trainer
    t = make(grpo={"beta": 0.1})
    t._loaded.projector.requires_grad_(False)
    learning = {name for name, p in t.model.named_parameters() if p.requires_grad}
    t.model.train()
    t._generate_and_score_completions(batch_of(rows, clips=1))
    assert {name for name, p in t.model.named_parameters() if p.requires_grad} == learning


def test_policy_log_probabilities_fall_by_nats_when_the_audio_is_swapped(trainer):
    """The trained model's own right answers, scored with the right and with another clip's audio."""
    make, rows = trainer
    t = make()
    emotions = t._prompter.emotions
    answers = [
        [*t._prompter.encode(write_response(
            [v / sum(r["votes"]) for v in r["votes"]], emotions.names[max(range(6), key=r["votes"].__getitem__)],
            emotions, grid=ShareGrid(10),
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


def test_agreement_multiplies_a_clips_gradient_and_cancels_on_a_reward_that_its_group_scales(trainer):
    make, rows = trainer
    sure, split = [8, 0, 0, 0, 0, 0], [4, 4, 0, 0, 0, 0]
    weight = 1 - 0.5 * 1 / math.log2(6)

    def alternating(completions, **columns):
        return [float(i % 2) for i in range(len(completions))]

    def weighted(completions, votes, **columns):
        return [weight * (i % 2) for i in range(len(completions))]

    def step(t, votes):
        t.model.train()
        t.current_gradient_accumulation_steps = 1
        t.model.zero_grad()
        torch.manual_seed(0)
        out = t._generate_and_score_completions(batch_of([{**rows[0], "votes": votes}], clips=1))
        t._compute_loss(t.model, dict(out)).backward()
        return out["advantages"], torch.cat([p.grad.flatten() for p in t.model.parameters() if p.grad is not None])

    t = make(alternating, agreement_weight=0.5)
    (advantage_sure, gradient_sure), (advantage_split, gradient_split) = step(t, sure), step(t, split)
    assert gradient_sure.abs().max() > 1e-4
    torch.testing.assert_close(advantage_split, weight * advantage_sure)
    torch.testing.assert_close(gradient_split, weight * gradient_sure, rtol=1e-4, atol=1e-7)

    plain = make(alternating, agreement_weight=0.0)
    torch.testing.assert_close(step(plain, split)[0], advantage_sure)

    scaled, grouped = {"scale_rewards": "group"}, make(alternating, grpo={"scale_rewards": "group"})
    same = step(make(weighted, grpo=scaled), split)[0]
    torch.testing.assert_close(same, step(grouped, split)[0], rtol=1e-3, atol=0)
    on_advantage = step(make(alternating, grpo=scaled, agreement_weight=0.5), split)[0]
    torch.testing.assert_close(on_advantage, weight * step(grouped, split)[0])


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
        ({"use_vllm": "true", "vllm_mode": "server"}, r"rollouts_folder: is missing.*equivox serve --rollouts"),
        ({"use_vllm": "true", "generation_kwargs": '{"do_sample": false}'}, "generation_kwargs: is not passed to vLLM"),
        ({"use_vllm": "true", "loss_type": "vespo"}, "sequence_mask, but loss_type vespo needs token_truncate"),
        ({"activation_checkpointing": "true"}, "activation_checkpointing"),
        ({"reward_weights": [1.0]}, "1 weights for 2 rewards"),
        ({"min_reward_spread": -1}, "min_reward_spread"),
        ({"agreement_weight": 1.5}, "agreement_weight"),
    ):
        with pytest.raises(ConfigError, match=says):
            main(arguments(trained_checkpoint, tmp_path / "never", **changes))
    assert not (tmp_path / "never").exists()


def test_a_reward_that_asks_for_a_column_the_clips_lack_is_refused_before_anything_is_written(
    trained_checkpoint, tmp_path
):
    (tmp_path / "r.py").write_text("def mood(completions, weather, **columns):\n    return [0.0]\n")
    with pytest.raises(RewardError, match=r"mood: asks for the column 'weather'; the clips have .*intended.*votes"):
        main(arguments(trained_checkpoint, tmp_path / "never", rewards=[f"{tmp_path}/r.py:mood"], reward_weights=[1]))
    assert not (tmp_path / "never").exists()
