"""Prints the installed distributions that serving does not need: what came for tests and training. What holds weights stays.

Usage: unneeded.py EXTRA, the dependency group that serves (cpu or gpu).
"""

import re
import sys
from importlib.metadata import PackageNotFoundError, distributions, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def needed(name: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]]) -> set[str]:
    """The installed distributions that `name` with `extras` stands on, itself included."""
    if (name, extras) in seen:
        return set()
    seen.add((name, extras))
    try:
        texts = requires(name) or []
    except PackageNotFoundError:
        return set()
    found = {name}
    for requirement in map(Requirement, texts):
        markers = [{"extra": extra} for extra in extras or {""}]
        if requirement.marker is None or any(map(requirement.marker.evaluate, markers)):
            found |= needed(canonicalize_name(requirement.name), frozenset(requirement.extras), seen)
    return found


if __name__ == "__main__":
    parts = re.findall(r"^([\w-]+)==", (Path(__file__).parent / "parts.lock").read_text(), re.M)
    kept = needed("blsp-serve", frozenset({sys.argv[1]}), set()) | {"pip", "setuptools", *map(canonicalize_name, parts)}
    print(*sorted({canonicalize_name(d.metadata["Name"]) for d in distributions()} - kept))
