"""python requirements/lock.py > requirements/cpu.lock

Prints the lock of the environment it runs in: the exact version of everything that equivox with its extras needs,
walked from the installed metadata, so that what is pinned is what the tests ran with. Run it after a dependency was
added to pyproject.toml and installed, and commit both. torch is left to launch/setup.sh, which picks its CPU build;
torchvision, torchaudio and torchcodec are left out because their PyPI builds are CUDA ones that break transformers.
"""

import sys
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRAS = ("dev", "deepspeed")
LEFT_OUT = {"equivox", "torch", "torchvision", "torchaudio", "torchcodec"}
HEAD = """\
# Everything that Equivox needs on a CPU machine, exactly pinned; torch and its CPU build are launch/setup.sh's.
# Installed with `pip install --no-deps -r requirements/cpu.lock`: --no-deps keeps out what is listed nowhere here.
# Made by `python requirements/lock.py > requirements/cpu.lock`, see there. Python {python}, {platform}."""


def closure(name: str, extras: tuple[str, ...] = ()) -> dict[str, str]:
    """Every distribution that `name[extras]` needs here, by canonical name, with its installed version.

    Raises PackageNotFoundError if one is missing and ValueError if one is outside the range its dependent asks for.
    """
    found: dict[str, str] = {}
    seen: set[tuple[str, tuple[str, ...]]] = set()
    queue = [(name, extras)]
    while queue:
        parent = queue.pop()
        if parent in seen:
            continue
        seen.add(parent)
        name, extras = parent
        found[canonicalize_name(name)] = distribution(name).version
        for line in distribution(name).requires or ():
            requirement = Requirement(line)
            if not applies(requirement, extras):
                continue
            try:
                version = distribution(requirement.name).version
            except PackageNotFoundError:
                raise PackageNotFoundError(f"{requirement.name}, which {name} asks for with {line!r}") from None
            if not requirement.specifier.contains(version, prereleases=True):
                raise ValueError(f"{requirement.name} {version} is installed, but {name} asks for {line!r}")
            queue.append((canonicalize_name(requirement.name), tuple(sorted(requirement.extras))))
    return found


def applies(requirement: Requirement, extras: tuple[str, ...]) -> bool:
    """Whether the requirement's marker holds on this machine for any of the extras."""
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))


def main() -> None:
    pins = {name: version for name, version in closure("equivox", EXTRAS).items() if name not in LEFT_OUT}
    print(HEAD.format(python=".".join(map(str, sys.version_info[:2])), platform=sys.platform))
    for name in sorted(pins):
        print(f"{name}=={pins[name]}")


if __name__ == "__main__":
    main()
