"""The example units, the container file and the walk-through name commands that there are."""

import json
import re
import shlex
from pathlib import Path

import pytest

from mammo_fed.client.operations.cli import _command_line as site_client
from mammo_fed.server.operations.cli import _command_line as flower_server

ROOT = Path(__file__).parents[2]
PARSERS = {"site-client": site_client, "flower-server": flower_server}


def parsed(words: list[str]) -> str:
    """The name of the function that a command line calls; SystemExit where there is no such command or option."""
    line = PARSERS[Path(words[0]).name]()
    return line.parse(words[1:]).command.rpartition(":")[2].removesuffix("_command")


@pytest.mark.parametrize("unit", ["site-client", "flower-server"])
def test_a_unit_starts_a_command_that_there_is_and_is_hardened(unit):
    text = (ROOT / "deploy" / f"{unit}.service").read_text()
    (start,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    words = shlex.split(start)
    assert Path(words[0]).name == unit
    assert parsed(words) == "run"
    for rule in ("NoNewPrivileges=true", "ProtectSystem=strict", "CapabilityBoundingSet=\n", "UMask=0077", "KillMode=mixed"):
        assert rule in text


def test_a_unit_does_not_try_again_what_was_refused():
    for unit in PARSERS:
        assert "RestartPreventExitStatus=2 3\n" in (ROOT / "deploy" / f"{unit}.service").read_text()


def test_the_container_starts_commands_that_there_are():
    text = (ROOT / "deploy" / "Containerfile").read_text()
    words = {
        name: json.loads(found) for name, found in re.findall(r"^(?:HEALTHCHECK .*)?(ENTRYPOINT|CMD) (\[.*\])$", text, re.M)
    }
    assert parsed(words["ENTRYPOINT"] + words["CMD"]) == "run"
    (health,) = re.findall(r"^HEALTHCHECK .* CMD (\[.*\])$", text, re.MULTILINE)
    assert parsed(json.loads(health)) == "status"
    assert "USER 10001" in text


def commands(text: str) -> list[list[str]]:
    """The command lines in the code blocks of a page, without comments, optional parts and continuations."""
    found = []
    for block in re.findall(r"```\n(.*?)```", text, re.DOTALL):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            bare = re.sub(r"\[[^]]*\]", "", line.split("#")[0])
            found += [shlex.split(part) for part in re.split(r"&&|&", bare) if part.strip()]
    return [words for words in found if words[0] in PARSERS]


def test_every_command_of_the_walk_through_can_be_given():
    found = commands((ROOT / "docs" / "deployment.md").read_text())
    assert {"init", "register", "run", "check", "rotate_key"} <= {parsed(words) for words in found}


def test_every_command_of_the_readme_for_sites_can_be_given(federation):
    text = (federation.path / "for-sites" / "README.txt").read_text().replace("\\\n", " ")
    lines = [shlex.split(line) for line in text.splitlines() if line.startswith("  site-client")]
    assert [parsed(words) for words in lines] == ["init", "public_key", "check", "run"]


@pytest.mark.parametrize("name", ["site-client", "flower-server"])
def test_the_command_is_installed_under_its_name(name):
    module = PARSERS[name].__module__
    assert f'{name} = "{module}:main"' in (ROOT / "pyproject.toml").read_text()
