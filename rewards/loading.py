"""Find a reward function by the name a user writes in YAML: `file.py:function` or `package.module:function`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from reasoning.errors import RewardError

Reward = Callable[..., Any]


def load_reward(name: str) -> Reward:
    """The plain or async function that `name` names. Raises RewardError where file, function or signature is missing.

    A file is loaded under a module name of its own, made from its path, never through sys.path: a user's `rewards.py`
    cannot shadow ours.
    """
    where, colon, function = name.rpartition(":")
    if not colon or not where or not function.isidentifier():
        raise RewardError(f"{name!r} is not file.py:function or package.module:function", field="rewards")
    module = _file_module(Path(where), name) if where.endswith(".py") else _installed_module(where, name)
    found = getattr(module, function, None)
    if not callable(found) or not hasattr(found, "__name__"):
        defined = [n for n, v in vars(module).items() if inspect.isfunction(v) and not n.startswith("_")]
        raise RewardError(f"{where} has no function {function!r}; it has {', '.join(defined) or 'none'}", field=name)
    parameters = inspect.signature(found).parameters
    takes_rest = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    if "completions" not in parameters or not takes_rest:
        raise RewardError(
            f"{name} must take completions and **columns, as TRL calls it", field="rewards", cure="see docs/reward.md"
        )
    return found


def load_rewards(names: Sequence[str]) -> list[Reward]:
    """Each named function; refuses two of the same name, whose logged columns would merge."""
    loaded = [load_reward(name) for name in names]
    short = [f.__name__ for f in loaded]
    for name in short:
        if short.count(name) > 1:
            raise RewardError(f"two rewards are called {name!r}", field="rewards", cure="rename one of the functions")
    return loaded


def _file_module(path: Path, name: str) -> ModuleType:
    if not path.is_file():
        raise RewardError(f"file {path} does not exist", field=name, cure="give the path from where you start")
    unique = f"equivox_user_reward_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    if unique in sys.modules:
        return sys.modules[unique]
    spec = importlib.util.spec_from_file_location(unique, path)
    if spec is None or spec.loader is None:
        raise RewardError(f"{path} cannot be loaded as Python", field=name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[unique]
        raise RewardError(f"{path} fails when it is loaded: {type(error).__name__}: {error}", field=name) from error
    return module


def _installed_module(where: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(where)
    except ImportError as error:
        raise RewardError(f"module {where} cannot be imported: {error}", field=name) from None
