"""Imports point one way, as the house is drawn: read from the source, so that imports inside functions count too."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("reasoning", "data_builders", "rewards", "launch")
MAY_IMPORT = {  # room: the rooms it may import besides its own files
    "reasoning": (),  # the files at its root
    "reasoning.models": ("reasoning",),
    "reasoning.inference": ("reasoning", "reasoning.models"),
    # vLLM and a server are asked in one way, whether answers are scored or trained on.
    "reasoning.rollouts": ("reasoning", "reasoning.models", "reasoning.inference"),
    "reasoning.training": ("reasoning", "reasoning.models", "reasoning.rollouts"),
    "reasoning.evaluation": ("reasoning", "reasoning.models", "reasoning.inference"),
    "data_builders": ("reasoning",),
    "rewards": ("reasoning",),
}
HEAVY = {"torch", "transformers", "trl", "peft", "accelerate", "datasets", "librosa", "pyworld"}
ROOT_FILES = sorted((REPOSITORY / "reasoning").glob("*.py"))
SOURCES = sorted(path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str) -> bool:
    path = REPOSITORY.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def imported(source: str, package: str) -> set[str]:
    """Full names of what `source`, a file in `package`, imports anywhere, relative imports resolved."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            # `from reasoning import audio` imports a module, `from reasoning.audio import read_audio` does not.
            names |= {f"{base}.{a.name}" if is_module(f"{base}.{a.name}") else base for a in node.names}
    return names


def room(module: str) -> str:
    """The folder of reasoning that `module` lies in, "reasoning" for the files at its root, else the package."""
    top, *rest = module.split(".")
    if top == "reasoning" and rest and (REPOSITORY / top / rest[0]).is_dir():
        return f"{top}.{rest[0]}"
    return top


def imports_of(path: Path) -> set[str]:
    package = module_name(path.parent / "__init__.py")
    return imported(path.read_text(encoding="utf-8"), package)


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_point_one_way(path):
    own = room(module_name(path))
    if own == "launch":
        return  # the commands may import everything
    allowed = {own, *MAY_IMPORT[own]}
    wrong = {name for name in imports_of(path) if name.split(".")[0] in PACKAGES and room(name) not in allowed}
    assert not wrong, f"{own} may import {sorted(allowed)}"


@pytest.mark.parametrize("path", ROOT_FILES, ids=module_name)
def test_root_files_of_reasoning_name_no_heavy_library(path):
    allowed = {"librosa", "pyworld"} if path.name == "cues.py" else set()
    assert not {name.split(".")[0] for name in imports_of(path)} & (HEAVY - allowed)


def test_importing_every_root_file_of_reasoning_loads_no_heavy_library():
    modules = ", ".join(module_name(path) for path in ROOT_FILES if path.name != "cues.py")
    code = f"import sys, {modules}; print(sorted({HEAVY!r} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_there_are_sources_of_every_package_to_check():
    assert {module_name(path).split(".")[0] for path in SOURCES} == set(PACKAGES)


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import launch.sft as x", {"launch.sft"}),
        ("from reasoning import audio, emotions", {"reasoning.audio", "reasoning.emotions"}),
        ("from reasoning.audio import read_audio", {"reasoning.audio"}),
        ("def f():\n    import torch.nn", {"torch.nn"}),
        ("from . import loading", {"reasoning.models.loading"}),
        ("from ..training import sft", {"reasoning.training.sft"}),
        ("from .loading import load_model", {"reasoning.models.loading"}),
    ],
)
def test_the_check_sees_every_way_to_import(source, names):
    assert imported(source, "reasoning.models") == names
