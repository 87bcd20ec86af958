"""The lockfile: what `make install` installs is pinned, all of it, and is what the tests ran with."""

from __future__ import annotations

import importlib.metadata
import runpy
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
# What an environment is made with, whatever is installed into it.
TOOLS = {"pip", "setuptools", "wheel"}


@pytest.fixture(scope="module")
def pinned() -> dict[str, Version]:
    """Version by name; exactly one each, by ==."""
    lines = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    found = {}
    for line in lines:
        name, _, version = line.partition("==")
        assert canonicalize_name(name) not in found, line
        found[canonicalize_name(name)] = Version(version)
    return found


def wanted() -> list[Requirement]:
    """What pyproject.toml asks for, development tools included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [Requirement(text) for text in (*project["dependencies"], *project["optional-dependencies"]["dev"])]


@pytest.fixture(scope="module")
def needed() -> set[str]:
    """Names of all that the package and its dev extra need here, and what those need."""
    found: set[tuple[str, frozenset[str]]] = set()
    open_ends = [(canonicalize_name(requirement.name), frozenset(requirement.extras)) for requirement in wanted()]
    while open_ends:
        name, extras = open_ends.pop()
        if (name, extras) in found:
            continue
        found.add((name, extras))
        for text in importlib.metadata.requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                open_ends.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return {name for name, _ in found} - TOOLS


def test_every_distribution_that_the_package_and_its_tools_need_is_pinned(pinned, needed):
    assert len(needed) > 80
    assert sorted(needed - pinned.keys()) == []


def test_what_is_installed_is_what_is_pinned(pinned, needed):
    installed = {name: Version(importlib.metadata.version(name)) for name in needed}
    # A build for another processor has a suffix, and is the same version.
    assert {name: version.public for name, version in installed.items()} == {name: pinned[name].public for name in needed}


def test_the_pins_allow_what_the_package_asks_for(pinned):
    for requirement in wanted():
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


@pytest.fixture(scope="module")
def audit() -> dict[str, object]:
    return runpy.run_path(str(ROOT / ".ci" / "audit.py"))


def test_a_known_vulnerability_fails_the_audit_unless_it_is_listed_with_a_reason(audit):
    fault = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2"]}
    dependencies = [
        {"name": "a", "version": "1", "vulns": [fault]},
        {"name": "b", "version": "1", "vulns": []},
        {"name": "c", "skip_reason": "not found"},
    ]
    assert audit["judge"](dependencies, {}) == (["a 1: PYSEC-1, fixed in 2"], [], 2)
    bad, passed, _ = audit["judge"](dependencies, audit["read_ignored"]("# none\nCVE-1 it is not called\n"))
    assert (bad, len(passed)) == ([], 1)


def test_a_vulnerability_is_not_let_pass_without_a_reason(audit):
    with pytest.raises(ValueError, match="CVE-1 must have a reason"):
        audit["read_ignored"]("CVE-1\n")


def test_the_list_of_what_is_let_pass_can_be_read(audit):
    assert all(audit["read_ignored"]((ROOT / ".ci" / "audit-ignore.txt").read_text(encoding="utf-8")).values())
