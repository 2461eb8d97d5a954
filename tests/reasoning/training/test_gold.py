"""GRPO at level think, and with a verified reference in the group: what it changes, and by how much exactly."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from trl import GRPOConfig

from data_builders.rows import read_corpus, split_clips
from data_builders.traces.trace_file import TraceRow, write_traces
from launch import HOME
from launch.grpo import main
from reasoning.errors import RowError
from reasoning.models.loading import add_adapter, load_model
from reasoning.models.prompter import Prompter
from reasoning.response import ShareGrid, read_response, write_response
from reasoning.training.gold import GoldGRPOTrainer
from reasoning.training.grpo import AudioGRPOTrainer
from rewards.distribution import closeness

CLIPS, SAMPLES = 4, 4


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Adapters are compared bit by bit, and with two threads the same run twice differs in the last one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make(thinking_checkpoint, tmp_path):
    """make(gold=None, reward=closeness, ...) -> (an untouched trainer over eight clips, their rows)."""
    corpus = read_corpus(thinking_checkpoint.corpus)
    rows = [
        {"id": c.id, "audio": str(corpus.root / c.audio), "transcript": c.transcript, "votes": list(c.votes)}
        | {"emotions": list(corpus.info.emotions.names)}
        for c in split_clips(corpus, 0)["test"][:8]
    ]
    loaded = add_adapter(load_model(thinking_checkpoint.model), r=2, alpha=4, dropout=0.0, train_projector=False)

    def build(gold=None, reward=closeness, grpo=None, kl_weight=0.0):
        args = GRPOConfig(str(tmp_path), **{
            "per_device_train_batch_size": 16, "num_generations": SAMPLES, "max_completion_length": 320, "seed": 1,
            "use_cpu": True, "bf16": False, "activation_checkpointing": False, "report_to": [], "temperature": 1.3,
            "scale_rewards": "none",
        } | (grpo or {}))  # fmt: skip
        prompter = Prompter(loaded, corpus.info.emotions)
        kind = AudioGRPOTrainer if gold is None else GoldGRPOTrainer
        extra = {} if gold is None else {"gold": gold, "grid": ShareGrid(10)}
        trainer = kind(
            loaded, prompter, loaded.memory(), [reward], rows=rows, level="think", args=args, kl_weight=kl_weight,
            min_reward_spread=0.0, **extra,
        )  # fmt: skip
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        return trainer

    return build, rows


@pytest.fixture
def traces(thinking_checkpoint):
    return thinking_checkpoint.traces


def rollout(trainer, rows, clips=CLIPS):
    torch.manual_seed(0)
    return trainer._generate_and_score_completions(
        [{**rows[i], "row": i, "prompt": rows[i]["id"]} for i in range(clips) for _ in range(SAMPLES)]
    )


def texts(trainer, output) -> list[str]:
    return trainer._prompter.tokenizer.batch_decode(output["completion_ids"], skip_special_tokens=True)


def test_at_level_think_the_policy_thinks_and_its_vote_is_found_after_the_thinking(make):
    build, rows = make
    t = build(grpo={"temperature": 0.3})
    out = rollout(t, rows)
    readings = [read_response(text, t._prompter.emotions) for text in texts(t, out)]
    thinking = [r for r in readings if r.thinking and not r.problems]
    assert len(thinking) >= 4
    for reading, ids, slot, mask in zip(readings, out["completion_ids"], out["slots"], out["tool_mask"], strict=True):
        if reading.vote is not None:
            vote = t._prompter.tokenizer.decode(ids[int(slot) : int(slot) + (mask == 0).sum()])
            assert vote == f" {reading.vote}"
            assert "</think>" in t._prompter.tokenizer.decode(ids[: int(slot)])


def test_at_level_think_log_probabilities_of_thinking_and_answer_fall_when_the_audio_is_swapped(make, traces):
    build, rows = make
    t = build()
    emotions = t._prompter.emotions
    thoughts, answers = [], []
    for row in rows[:4]:
        shares = [v / sum(row["votes"]) for v in row["votes"]]
        text = write_response(
            shares, emotions.names[shares.index(max(shares))], emotions, traces[row["id"]], ShareGrid(1)
        )
        thoughts.append(len(t._prompter.encode(text.split("<answer>")[0])))
        answers.append([*t._prompter.encode(text), t._prompter.eos_id])
    placeholder = t._prompter.tokenizer.convert_tokens_to_ids("<|AUDIO|>")

    def logps(heard_rows):
        found = []
        for row, heard_row, answer, thought in zip(range(4), heard_rows, answers, thoughts, strict=True):
            heard = t._hear([heard_row])[0]
            prompt = t._prompter.prompt_ids(rows[row]["transcript"], heard, "think")
            assert prompt.count(placeholder) == len(heard.features)
            ids = torch.tensor([prompt + answer])
            t._pass_rows = torch.tensor([heard_row])
            with torch.no_grad():
                got, _, _ = t._get_per_token_logps_and_entropies(t.model, ids, torch.ones_like(ids), len(answer))
            found.append((float(got[0, :thought].sum()), float(got[0, thought:].sum())))
        return torch.tensor(found)

    drop = logps([0, 1, 2, 3]) - logps([1, 2, 3, 0])
    assert (drop[:, 0] > 3).all(), f"thinking: {drop}"
    assert (drop.sum(1) > 6).all(), drop


def test_the_reference_takes_the_last_place_of_each_group_that_has_one_and_is_the_trace_with_the_votes(make, traces):
    build, rows = make
    some = {row["id"]: traces[row["id"]] for row in rows[:2]}
    t = build(some)
    out = rollout(t, rows)
    assert t._gold == [i in (3, 7) for i in range(16)]
    written = texts(t, out)
    for place, row in ((3, rows[0]), (7, rows[1])):
        reading = read_response(written[place], t._prompter.emotions)
        assert reading.thinking == traces[row["id"]]
        shares = torch.tensor(row["votes"]) / sum(row["votes"])
        assert (torch.tensor(reading.probabilities) - shares).abs().max() < 0.1
        assert row["votes"][t._prompter.emotions.names.index(reading.vote)] > 0


def test_a_group_that_is_split_between_two_ranks_has_one_reference():
    ranks = [SimpleNamespace(process_index=rank) for rank in (0, 1)]
    model = SimpleNamespace(training=True)
    found = []
    for accelerator in ranks:
        t = SimpleNamespace(accelerator=accelerator, num_generations=4, model=model, _thinking={"a": "", "c": ""})
        found += GoldGRPOTrainer._places(t, [{"id": i} for i in ("aaaabb", "bbcccc")[accelerator.process_index]])  # type: ignore[arg-type]
    assert found == [i in (3, 11) for i in range(12)]
    model.training = False
    assert not any(GoldGRPOTrainer._places(t, [{"id": "c"}] * 6))  # type: ignore[arg-type]


def test_without_a_reference_every_number_is_that_of_the_plain_trainer(make):
    build, rows = make
    plain, none = (rollout(t, rows, clips=2) for t in (build(), build({})))
    assert plain.keys() == none.keys()
    assert all(torch.equal(plain[key], none[key]) for key in plain)


def test_the_others_are_the_same_samples_and_their_advantages_shift_by_the_references_reward(make, traces):
    build, rows = make
    plain, gold = build(), build({rows[0]["id"]: traces[rows[0]["id"]]})
    without, with_ = rollout(plain, rows, clips=2), rollout(gold, rows, clips=2)
    assert texts(plain, without)[:3] == texts(gold, with_)[:3]
    r = plain._rewards[:4].tolist()
    reference = gold._rewards[3].item()
    assert reference > 0.95
    mean = (sum(r[:3]) + reference) / 4
    for i in range(3):
        assert with_["advantages"][i].item() == pytest.approx(r[i] - mean, abs=1e-6)
        shift = with_["advantages"][i].item() - without["advantages"][i].item()
        assert shift == pytest.approx(-(reference - r[3]) / 4, abs=1e-6)
    assert with_["advantages"][3].item() == pytest.approx(max(0, reference - mean), abs=1e-6)
    torch.testing.assert_close(with_["advantages"][4:], without["advantages"][4:])


def test_the_gradient_is_that_of_the_formula_and_the_references_vote_has_none(make, traces):
    """-sum_i A_i sum_t grad log pi(t) / N over the tokens that are no vote, from full logits, ratio 1."""
    build, rows = make
    t = build({rows[0]["id"]: traces[rows[0]["id"]]})
    out = rollout(t, rows, clips=1)
    advantages, ids, mask = out["advantages"], out["completion_ids"], out["completion_mask"]
    assert out["slots"][3] == -1
    vote = (out["tool_mask"][3] == 0).nonzero().flatten().tolist()
    assert t._prompter.tokenizer.decode(ids[3, vote]).strip() in t._prompter.emotions.names
    t.model.zero_grad()
    t._compute_loss(t.model, dict(out)).backward()
    found = {name: p.grad.clone() for name, p in t.model.named_parameters() if p.grad is not None}

    t.model.zero_grad()
    heard = t._hear([0])[0]
    prompt = t._prompter.prompt_ids(rows[0]["transcript"], heard, "think")
    kept = (mask * out["tool_mask"]).bool()
    loss = torch.zeros(())
    for i in range(SAMPLES):
        n = int(mask[i].sum())
        whole = torch.tensor([prompt + ids[i, :n].tolist()])
        audio = {
            "input_features": heard.features[None], "attention_mask": torch.ones_like(whole),
        }  # fmt: skip
        logits = naive_logits(t, whole, audio)[0, len(prompt) - 1 : -1] / t.temperature
        logps = torch.log_softmax(logits.float(), -1).gather(1, ids[i, :n, None])[:, 0]
        loss = loss - advantages[i] * logps[kept[i, :n]].sum() / kept.sum()
    loss.backward()
    naive = {name: p.grad for name, p in t.model.named_parameters() if p.grad is not None}
    assert max(float(g.abs().max()) for g in naive.values()) > 1e-4
    for name, gradient in naive.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6)


def naive_logits(t, ids, audio):
    from reasoning.models.memory import batch_heard

    heard = batch_heard(t._hear([0]), t._loaded.family)
    return t.model(input_ids=ids, attention_mask=audio["attention_mask"], **heard).logits


def test_a_reference_that_the_group_beats_is_left_alone(make, traces):
    def short(completions, **columns):
        return [-float(len(text) > 0) if "Words: plain\nVoice" in text and i % 4 == 3 else 1.0 + 0.1 * (i % 4)
                for i, text in enumerate(completions)]  # fmt: skip

    build, rows = make
    t = build({rows[0]["id"]: traces[rows[0]["id"]]}, reward=short)
    out = rollout(t, rows, clips=1)
    assert out["advantages"][3] == 0
    assert (out["advantages"][:3] > 0).all()


def test_what_is_logged_is_the_policys_own(make, traces):
    build, rows = make
    t = build({row["id"]: traces[row["id"]] for row in rows})
    out = rollout(t, rows)
    own = torch.tensor([i % 4 != 3 for i in range(16)])
    metrics = t._metrics["train"]
    assert metrics["reward"][-1] == pytest.approx(t._rewards[own].mean().item())
    assert metrics["reward_std"][-1] == pytest.approx(t._rewards[own].std().item())
    assert metrics["rewards/closeness/mean"][-1] == pytest.approx(t._rewards[own].mean().item())
    assert metrics["gold/reward"][-1] == pytest.approx(t._rewards[~own].mean().item())
    assert metrics["gold/advantage"][-1] == pytest.approx(out["advantages"][~own].mean().item())
    readable = [not read_response(text, t._prompter.emotions).problems for text in texts(t, out)]
    assert metrics["parse_rate"][-1] == pytest.approx(sum(r for r, o in zip(readable, own, strict=True) if o) / 12)
    assert list(t._logs["extra"]["gold"]) == [i % 4 == 3 for i in range(16)]


def test_the_vote_kl_is_taken_at_the_policys_own_slots(make, traces):
    build, rows = make
    t = build({rows[0]["id"]: traces[rows[0]["id"]]}, kl_weight=1.0)
    out = rollout(t, rows, clips=1)
    kl = t._compute_loss(t.model, dict(out)).item()
    moved = {**out, "slots": torch.where(out["slots"] < 0, 5, out["slots"])}
    assert t._compute_loss(t.model, moved).item() != pytest.approx(kl, rel=1e-3)


@pytest.mark.parametrize("level", ["token_truncate", "sequence_mask"])
def test_where_an_engine_samples_the_reference_has_no_correction_for_what_the_engine_said(
    make, traces, monkeypatch, level
):
    def drawn(self, prompt_ids, *args, **kwargs):
        ids = [[*self._prompter.encode("<answer>Vote: sad\n"), self._prompter.eos_id] for _ in prompt_ids]
        return ids, [[-3.0] * len(row) for row in ids]

    build, rows = make
    monkeypatch.setattr(AudioGRPOTrainer, "_generate_single_turn", drawn)
    t = build({rows[0]["id"]: traces[rows[0]["id"]]}, grpo={"vllm_importance_sampling_mode": level})
    t.use_vllm, t.vllm_importance_sampling_correction = True, True
    ratio = rollout(t, rows, clips=1)["importance_sampling_ratio"]
    assert (ratio[3] == 1).all()
    assert (ratio[:3, 0] != 1).all()


def test_a_reference_longer_than_an_answer_may_be_is_refused_by_name(make, traces):
    build, rows = make
    with pytest.raises(RowError, match=rf"{rows[0]['id']}.*over max_completion_length 40"):
        build({rows[0]["id"]: traces[rows[0]["id"]]}, grpo={"max_completion_length": 40})


def test_the_command_thinks_judges_the_voice_line_and_resumes_to_the_same_adapter(thinking_checkpoint, tmp_path):
    corpus = read_corpus(thinking_checkpoint.corpus)
    file, out, again = tmp_path / "traces.parquet", tmp_path / "run", tmp_path / "again"
    kept = [TraceRow(name, text, "test", False, "kept", ()) for name, text in thinking_checkpoint.traces.items()]
    write_traces(file, kept, corpus)

    def run(folder):
        options = {
            "config": HOME / "launch" / "configs" / "grpo.yaml", "model_name_or_path": thinking_checkpoint.model,
            "data": thinking_checkpoint.corpus, "output_dir": folder, "level": "think", "gold_traces": file,
            "share_parts": 10, "max_steps": 2, "save_steps": 1, "report_to": "none", "bf16": "false", "lora_r": 2,
            "num_generations": 4, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1,
            "max_completion_length": 300, "warmup_steps": 0, "save_total_limit": 3,
        }  # fmt: skip
        rewards = ["rewards.distribution:closeness", "rewards.grounding:grounding"]
        parts = [part for key, value in options.items() for part in (f"--{key}", str(value))]
        main([*parts, "--rewards", *rewards, "--reward_weights", "1", "0"])

    run(out)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines() if '"gold/reward"' in line]
    assert len(lines) == 2
    for line in lines:
        assert line["gold/reward"] > 0.95
        assert 0 <= line["rewards/grounding/mean"] <= 1
        assert line["reward"] == pytest.approx(line["rewards/closeness/mean"], abs=1e-6)
    rows = pq.read_table(out / "completions" / "completions_00001.parquet").to_pylist()
    assert [row["gold"] for row in rows] == [False, False, False, True] * 2
    assert rows[3]["grounding"] is not None
    shutil.copytree(out, again, ignore=shutil.ignore_patterns("checkpoint-2"))
    (again / "adapter_model.safetensors").unlink()
    run(again)
    a, b = (load_file(folder / "adapter_model.safetensors") for folder in (out, again))
    assert all(torch.equal(a[name], b[name]) for name in a)
