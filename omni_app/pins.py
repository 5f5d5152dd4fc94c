"""Installed packages against a list of exact pins."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name


def differences(pins: Iterable[str], site: Sequence[str] | None = None) -> list[str]:
    """What is not as pinned, one short phrase each; of this environment, or of the one with these site-packages."""
    found = importlib.metadata.distributions() if site is None else importlib.metadata.distributions(path=list(site))
    installed = {canonicalize_name(one.metadata["Name"]): one.version for one in found if one.metadata["Name"]}
    told: list[str] = []
    for wanted in _requirements(pins):
        version = installed.get(canonicalize_name(wanted.name))
        if version is None:
            told.append(f"{wanted.name} is missing")
        elif not wanted.specifier.contains(version, prereleases=True):
            told.append(f"{wanted.name} is {version}, not {str(wanted.specifier).removeprefix('==')}")
    return told


def _requirements(pins: Iterable[str]) -> Iterator[Requirement]:
    """Those of the lines that are for this platform; options and comments are left out."""
    for line in pins:
        try:
            wanted = Requirement(line.partition(" #")[0].strip())
        except InvalidRequirement:
            continue
        if wanted.marker is None or wanted.marker.evaluate():
            yield wanted


def site_packages(venv: Path) -> list[str]:
    """Where a virtual environment of any Python keeps its packages; empty when there is no such environment."""
    return [str(path) for path in sorted(venv.glob("lib*/python3*/site-packages"))]
