"""User rewards: found by path or module, never through sys.path, refused with a reason."""

from __future__ import annotations

import asyncio
import sys

import pytest

import rewards
from reasoning.errors import RewardError
from rewards.distribution import closeness
from rewards.loading import load_reward, load_rewards

GOOD = "def shout(completions, **columns):\n    return [float(c.isupper()) for c in completions]\n"


def test_a_function_in_a_file_named_like_our_package_does_not_shadow_it(tmp_path):
    (tmp_path / "rewards.py").write_text(GOOD)
    found = load_reward(f"{tmp_path}/rewards.py:shout")
    assert found(["A", "b"]) == [1.0, 0.0]
    assert sys.modules["rewards"] is rewards
    assert str(tmp_path) not in sys.path
    assert load_reward(f"{tmp_path}/rewards.py:shout") is found


def test_an_async_function_is_found_and_stays_one(tmp_path):
    (tmp_path / "judge.py").write_text("async " + GOOD)
    found = load_reward(f"{tmp_path}/judge.py:shout")
    assert asyncio.run(found(["A", "b"])) == [1.0, 0.0]


def test_an_installed_function_is_found_by_module():
    assert load_reward("rewards.distribution:closeness") is closeness


@pytest.mark.parametrize(
    ("content", "name", "says"),
    [
        (GOOD, "r.py:whisper", "it has shout"),
        ("x = 1", "r.py:x", "no function"),
        ("class C:\n    def __call__(self, completions, **columns): ...\nx = C()", "r.py:x", "no function"),
        ("def f(texts):\n    return []", "r.py:f", "completions"),
        ("1/0", "r.py:f", "ZeroDivisionError"),
        ("def f(", "r.py:f", "SyntaxError"),
        (GOOD, "r.py", "file.py:function"),
        (GOOD, "gone.py:f", "does not exist"),
    ],
)
def test_what_cannot_be_a_reward_is_named(tmp_path, content, name, says):
    (tmp_path / "r.py").write_text(content)
    with pytest.raises(RewardError, match=says):
        load_reward(f"{tmp_path}/{name}")
    with pytest.raises(RewardError, match="cannot be imported"):
        load_reward("no.such.module:f")


def test_two_rewards_of_one_name_are_refused(tmp_path):
    (tmp_path / "a.py").write_text("def closeness(completions, **columns):\n    return [0.0 for _ in completions]\n")
    with pytest.raises(RewardError, match="two rewards"):
        load_rewards(["rewards.distribution:closeness", f"{tmp_path}/a.py:closeness"])
