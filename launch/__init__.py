"""The commands, one short file each; `equivox --help` lists them in the order in which they are used.

The packages of this project have plain names, so another `rewards.py` earlier on sys.path would be imported in place of
ours, and training would run with somebody else's code. Importing `launch` checks that this is not so.
"""

from importlib.util import find_spec
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
SIBLINGS = ("reasoning", "data_builders", "rewards")


def check_siblings() -> None:
    """Return if the sibling packages are the ones beside this one; raise ImportError naming the shadowing file."""
    for name in SIBLINGS:
        spec = find_spec(name)  # looks the package up without running it
        if spec is None:
            raise ImportError(f"{name} is not installed: run `pip install -e . --no-deps` in the clone ({HOME})")
        found = Path(spec.origin or next(iter(spec.submodule_search_locations or ["?"]))).resolve()
        if found not in (HOME / name, HOME / name / "__init__.py"):
            raise ImportError(
                f"`import {name}` would load {found} instead of {HOME / name}: "
                "rename that file, run from another folder, or take its folder off PYTHONPATH"
            )


check_siblings()
