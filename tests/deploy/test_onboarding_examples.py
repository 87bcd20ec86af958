"""What the folders of coordinator and hospital hold is current: units, containers, example files, and the walk-through."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from mammo_fed.client.operations.cli import _command_line as site_client
from mammo_fed.federation.identity.site_template import example_site
from mammo_fed.server.operations.cli import _command_line as flower_server
from mammo_fed.settings.compose import compose_settings

ROOT = Path(__file__).parents[2]
PARSERS = {"site-client": site_client, "flower-server": flower_server}
FOLDERS = {"site-client": ROOT / "client", "flower-server": ROOT / "server"}


def parsed(words: list[str]) -> str:
    """The name of the function that a command line calls; SystemExit where there is no such command or option."""
    line = PARSERS[Path(words[0]).name]()
    return line.parse(words[1:]).command.rpartition(":")[2].removesuffix("_command")


@pytest.mark.parametrize("unit", ["site-client", "flower-server"])
def test_a_unit_starts_a_command_that_there_is_and_is_hardened(unit):
    text = (FOLDERS[unit] / f"{unit}.service").read_text()
    (start,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    words = shlex.split(start)
    assert Path(words[0]).name == unit
    assert parsed(words) == "run"
    for rule in ("NoNewPrivileges=true", "ProtectSystem=strict", "CapabilityBoundingSet=\n", "UMask=0077", "KillMode=mixed"):
        assert rule in text


def test_a_unit_does_not_try_again_what_was_refused():
    for unit, folder in FOLDERS.items():
        assert "RestartPreventExitStatus=2 3\n" in (folder / f"{unit}.service").read_text()


@pytest.mark.parametrize("folder", FOLDERS.values(), ids=FOLDERS)
def test_the_container_starts_commands_that_there_are(folder):
    text = (folder / "Containerfile").read_text()
    words = {
        name: json.loads(found) for name, found in re.findall(r"^(?:HEALTHCHECK .*)?(ENTRYPOINT|CMD) (\[.*\])$", text, re.M)
    }
    assert parsed(words["ENTRYPOINT"] + words["CMD"]) == "run"
    (health,) = re.findall(r"^HEALTHCHECK .* CMD (\[.*\])$", text, re.MULTILINE)
    assert parsed(json.loads(health)) == "status"
    assert "USER 10001" in text
    # What is copied is there: the build's context is the root of the repository.
    copied = [word for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for word in line.split()[:-1]]
    assert [name for name in copied if not (ROOT / name).exists()] == []
    compose = yaml.safe_load((folder / "compose.yaml").read_text())
    (service,) = compose["services"].values()
    assert (folder / service["build"]["context"] / service["build"]["dockerfile"]).resolve() == folder / "Containerfile"


def test_the_example_site_file_is_what_a_site_would_get():
    assert (ROOT / "client" / "site.toml").read_text() == example_site(server="coordinator.example.org:8443")


def test_the_example_run_can_be_prepared():
    (line,) = re.findall(r"^exec (.*)$", (ROOT / "server" / "prepare.sh").read_text(), re.MULTILINE)
    words = [word for word in shlex.split(line) if word not in {"$@", "$federation"}]
    assert parsed([*words[:2], "FEDERATION", *words[2:]]) == "run"
    settings = compose_settings([word for word in words if "=" in word]).settings
    assert (settings.federation.strategy, settings.privacy.unit) == ("FedAgree", "patient")


@pytest.mark.parametrize("name", ["server", "client", "simulations", "configs"])
def test_the_folders_of_the_roles_are_no_packages_and_say_what_they_hold(name):
    folder = ROOT / name
    assert list(folder.rglob("__init__.py")) == []
    told = (folder / "README.md").read_text()
    if name != "configs":
        assert [path.name for path in folder.iterdir() if path.is_file() and f"`{path.name}`" not in told] == ["README.md"]


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
