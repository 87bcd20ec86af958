"""What the folders of coordinator and hospital hold is current: units, containers, example files, and the walk-through."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from real_federation import free_port

from mammo_fed.client.operations.cli import _command_line as site_client
from mammo_fed.federation.identity.site_template import example_site
from mammo_fed.reporting.record.record import read_record
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


def stages() -> dict[str, str]:
    """The Containerfile's lines by stage, those of the stage below it included."""
    found: dict[str, str] = {}
    for part in re.split(r"^FROM ", (ROOT / "deploy" / "Containerfile").read_text(), flags=re.MULTILINE)[1:]:
        base, _, name = part.splitlines()[0].split()
        found[name] = found.get(base, f"FROM {base}\n") + part.partition("\n")[2]
    return found


def words_of(text: str, name: str) -> list[str]:
    """What the last line of one kind in a stage says, without the options of a health check."""
    *_, last = re.findall(rf"^(?:HEALTHCHECK .*)?{name} (\[.*\])$", text, re.MULTILINE)
    return json.loads(last)


@pytest.mark.parametrize(("stage", "program"), [("client", "site-client"), ("server", "flower-server")])
def test_a_container_starts_and_judges_its_role_by_commands_that_there_are(stage, program):
    text = stages()[stage]
    start = [*words_of(text, "ENTRYPOINT"), *words_of(text, "CMD")]
    assert (start[0], parsed(start)) == (program, "run")
    (health,) = re.findall(r"^HEALTHCHECK .* CMD (\[.*\])$", text, re.MULTILINE)
    assert (json.loads(health)[0], parsed(json.loads(health))) == (program, "status")
    assert "\nUSER 10001\n" in text
    # One version of Python and Debian, not the latest of several.
    assert re.match(r"FROM docker\.io/library/python:3\.\d+\.\d+-slim-\w+\n", text)
    # PyTorch without NVIDIA's libraries unless asked for, and decoders of DICOM.
    assert "ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu\n" in text
    assert '"/source[dicom]"' in text
    # What is copied is there: the build's context is the root of the repository.
    copied = [word for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for word in line.split()[:-1]]
    assert [name for name in copied if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("folder", ["client", "server", "deploy"])
def test_services_are_built_by_the_containerfile_and_confined(folder):
    services = yaml.safe_load((ROOT / folder / "compose.yaml").read_text())["services"]
    for name, service in services.items():
        build = service["build"]
        assert (ROOT / folder / build["context"] / build["dockerfile"]).resolve() == ROOT / "deploy" / "Containerfile"
        assert build["target"] == ("client" if "client" in name or "hospital" in name else "server")
        assert service["read_only"] is True
        assert (service["cap_drop"], service["security_opt"]) == (["ALL"], ["no-new-privileges"])
        # A port is opened by the coordinator alone.
        assert ("ports" in service) == (name == "flower-server")


def test_the_trial_of_a_deployment_has_a_coordinator_three_hospitals_and_a_volume_for_each():
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    services = compose["services"]
    assert set(services) == {"setup", "coordinator", "hospital-1", "hospital-2", "hospital-3"}
    mounts = {name: dict(volume.split(":")[:2] for volume in service["volumes"]) for name, service in services.items()}
    assert {volume for each in mounts.values() for volume in each} - {"./trial.sh"} == set(compose["volumes"])
    for number in (1, 2, 3):
        assert mounts[f"hospital-{number}"] == {f"hospital-{number}": "/site", f"state-{number}": "/state"}
        assert mounts["setup"][f"hospital-{number}"] == f"/sites/hospital-{number}"
    assert [name for name, each in services.items() if "depends_on" not in each] == ["setup"]
    # A volume belongs to the user of the image where the image has that folder.
    made = set(
        re.findall(r"(?<= )/[\w/-]+", " ".join(re.findall(r"install --directory.*?(?=\n[A-Z])", stages()["server"], re.S)))
    )
    assert {place for each in mounts.values() for place in each.values()} - {"/trial.sh"} <= made


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_trial_of_a_deployment_makes_its_folders_once_and_its_run_ends_well(tmp_path, cache):
    port = free_port()
    commands = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "PORT": str(port),
        "MAMMO_FED_CACHE": str(cache),
        "OMP_NUM_THREADS": "1",
    }
    run = [
        *("model=efficientnet_lite0", "model.input_size=64", "model.flips=none", "model.components=20"),
        *("synthesis.count=48", "federation.rounds=2"),
    ]
    setup = ["sh", str(ROOT / "deploy" / "trial.sh"), str(tmp_path / "fed"), "localhost", str(tmp_path)]
    for _ in range(2):
        subprocess.run([*setup, *run], env=environment, check=True, capture_output=True, timeout=600)
    processes = []
    try:
        for number in (1, 2, 3):
            command = [f"{commands}/site-client", "run", str(tmp_path / f"hospital-{number}")]
            processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL))
        command = [f"{commands}/flower-server", *words_of(stages()["server"], "CMD")]
        command = [word.replace("/federation", str(tmp_path / "fed")) for word in command]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200, check=False)
        assert done.returncode == 0, done.stderr
        for process in processes:
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 0
    finally:
        for process in processes:
            process.kill()
    record = read_record(tmp_path / "fed" / "runs" / "trial")
    assert [(site.site, site.refused) for site in record.privacy.sites] == [(f"hospital-{n}", False) for n in (1, 2, 3)]


@pytest.mark.parametrize("unit", ["site-client", "flower-server"])
def test_a_unit_is_rated_ok_or_better_by_systemd(unit, tmp_path):
    if (analyze := shutil.which("systemd-analyze")) is None:
        pytest.skip("needs systemd-analyze (Debian: systemd)")
    command = [analyze, "security", "--offline=true", "--no-pager", str(FOLDERS[unit] / f"{unit}.service")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    (exposure,) = re.findall(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    # systemd says OK below 5.0; a unit without any rule has 9.6.
    assert float(exposure) < 2.5, done.stdout


def test_the_example_site_file_is_what_a_site_would_get():
    assert (ROOT / "client" / "site.toml").read_text() == example_site(server="coordinator.example.org:8443")


def test_the_example_run_can_be_prepared():
    (line,) = re.findall(r"^exec (.*)$", (ROOT / "server" / "prepare.sh").read_text(), re.MULTILINE)
    words = [word for word in shlex.split(line) if word not in {"$@", "$federation"}]
    assert parsed([*words[:2], "FEDERATION", *words[2:]]) == "run"
    settings = compose_settings([word for word in words if "=" in word]).settings
    assert (settings.federation.strategy, settings.privacy.unit) == ("FedAgree", "patient")


@pytest.mark.parametrize("name", ["server", "client", "deploy", "simulations", "configs"])
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
    assert [parsed(words) for words in lines] == ["init", "public_key", "check", "run", "backup"]


@pytest.mark.parametrize("name", ["site-client", "flower-server"])
def test_the_command_is_installed_under_its_name(name):
    module = PARSERS[name].__module__
    assert f'{name} = "{module}:main"' in (ROOT / "pyproject.toml").read_text()
