"""What a command line imports before it has something to compute, and that its table names what there is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pkgutil import resolve_name
from typing import get_args

import pytest

from mammo_fed.cli import options
from mammo_fed.cli.data import options as data_options
from mammo_fed.cli.gan import options as gan_options
from mammo_fed.cli.main import COMMANDS as MAMMO_FED
from mammo_fed.cli.privacy import options as privacy_options
from mammo_fed.client.operations.cli import COMMANDS as SITE_CLIENT
from mammo_fed.common.command_line import Command, CommandGroup
from mammo_fed.server.operations.cli import COMMANDS as FLOWER_SERVER

HEAVY = ("dp_accounting", "flwr", "matplotlib", "numpy", "opacus", "pydicom", "ray", "scipy", "sklearn", "timm", "torch")
PROGRAMS = {
    "mammo_fed.cli.main": MAMMO_FED,
    "mammo_fed.server.operations.cli": FLOWER_SERVER,
    "mammo_fed.client.operations.cli": SITE_CLIENT,
}


def single(commands: tuple[Command | CommandGroup, ...]) -> Iterator[tuple[tuple[str, ...], Command]]:
    """Every command with the words that name it."""
    for one in commands:
        if isinstance(one, Command):
            yield (one.name,), one
        else:
            yield from (((one.name, below.name), below) for below in one.commands)


EVERY = [
    pytest.param(module, words, command, id=f"{module}-{'-'.join(words)}")
    for module, commands in PROGRAMS.items()
    for words, command in single(commands)
]


def loaded(module: str, *arguments: object, code: int = 0) -> set[str]:
    """The top-level packages that a command line has imported when it ends."""
    script = (
        f"import sys\nfrom {module} import main\n"
        "try:\n    code = main(sys.argv[1:])\nexcept SystemExit as stop:\n    code = stop.code or 0\n"
        "sys.stderr.write('\\nLOADED ' + ' '.join(sorted({name.split('.')[0] for name in sys.modules})))\nsys.exit(code)\n"
    )
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return set(done.stderr.rpartition("LOADED ")[2].split())


@pytest.mark.parametrize("module", PROGRAMS)
def test_help_loads_no_heavy_library(module):
    assert not loaded(module, "--help") & set(HEAVY)


@pytest.mark.parametrize(
    "arguments",
    [
        ("privacy", "plan", "--help"),
        ("audit", "--help"),
        ("gan", "train", "--help"),
        ("simulate", "--cfg", "job"),
        ("gan", "train", "--cfg", "job"),
        ("data", "fetch", "cmmd"),
    ],
    ids=" ".join,
)
def test_a_command_that_computes_nothing_loads_no_heavy_library(arguments):
    assert not loaded("mammo_fed.cli.main", *arguments) & set(HEAVY)


def test_a_setting_that_is_refused_loads_no_heavy_library():
    assert not loaded("mammo_fed.cli.main", "simulate", "seed=-1", code=2) & set(HEAVY)


def test_the_status_of_a_site_and_of_a_server_load_no_heavy_library(tmp_path):
    """A container asks for its health every minute."""
    server, site, run = "mammo_fed.server.operations.cli", "mammo_fed.client.operations.cli", tmp_path / "run"
    federation, folder = tmp_path / "federation", tmp_path / "site"
    assert not loaded(server, "init", federation, "--name", "mammo", "--host", "localhost") & set(HEAVY)
    init = ("init", folder, "--name", "hospital-a", "--server", "localhost:8443", "--ca", federation / "for-sites" / "ca.crt")
    small = ("data.images_train=96", "data.images_test=48", "data.images_external=24", "data.image_size=64")
    loaded(site, *init, "data=phantom", *small)
    assert not loaded(site, "status", folder, code=1) & set(HEAVY)
    assert not loaded(site, "public-key", folder) & set(HEAVY)
    assert not loaded(server, "register", federation, folder / "keys" / "hospital-a.pub") & set(HEAVY)
    assert not loaded(server, "sites", federation) & set(HEAVY)
    assert not loaded(server, "status", federation, code=1) & set(HEAVY)
    assert not loaded(server, "run", federation, "--prepare", f"hydra.run.dir={run}") & set(HEAVY)
    assert (run / "config.yaml").is_file()


def test_a_plan_loads_neither_torch_nor_flower_nor_matplotlib():
    assert not loaded("mammo_fed.cli.main", "privacy", "plan") & {"torch", "opacus", "flwr", "matplotlib", "sklearn"}


@pytest.mark.parametrize(("module", "words", "command"), EVERY)
def test_a_command_names_a_handler_that_there_is(module, words, command):
    handler = resolve_name(command.handler)
    assert callable(handler)
    assert handler.__name__ in sys.modules[handler.__module__].__all__


@pytest.mark.parametrize(("module", "words", "command"), EVERY)
def test_a_command_shows_its_options(module, words, command, capsys):
    with pytest.raises(SystemExit) as stop:
        resolve_name(f"{module}:main")([*words, "--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert " ".join(said.split("\n\n")[0].split()[:2]).startswith("usage:")
    assert "--debug" in said
    assert " ".join(command.text.split()) in " ".join(said.split())


def test_choices_are_those_of_the_code_that_takes_them():
    from mammo_fed.audit.canaries import CANARIES
    from mammo_fed.data.dicom.archives.registry import SOURCES
    from mammo_fed.data.dicom.phantom_archive.tree import FORMS
    from mammo_fed.data.dicom.phantom_archive.writing import Depth, Encoding
    from mammo_fed.data.sources.rows import Split
    from mammo_fed.privacy.accounting.pricing import ACCOUNTANTS
    from mammo_fed.synthesis.quality.descriptors import DESCRIPTORS

    assert CANARIES == options.CANARIES
    assert set(SOURCES) == set(data_options.SOURCES)
    assert get_args(Split) == data_options.SPLITS
    assert set(DESCRIPTORS) == set(gan_options.DESCRIPTORS)
    assert tuple(ACCOUNTANTS) == privacy_options.ACCOUNTANTS
    assert set(FORMS) == set(data_options.SOURCES)
    assert set(get_args(Encoding)) == set(data_options.ENCODINGS)
    assert set(get_args(Depth)) == set(data_options.DEPTHS)


def test_an_unknown_command_is_refused_with_its_nearest_neighbour(cli):
    code, out, err = cli("simulat", "seed=1")
    assert (code, out) == (2, "")
    assert "invalid choice: 'simulat'" in err
    assert err.rstrip().endswith("did you mean simulate?")
    code, _, err = cli("privacy", "pln")
    assert code == 2
    assert "choose from plan, show, verify, export" in err
    assert err.rstrip().endswith("did you mean plan?")


def test_an_unknown_command_like_no_other_is_refused_with_all_that_there_are(cli):
    code, _, err = cli("xyzzy")
    assert code == 2
    assert "choose from demo, simulate" in err
    assert "did you mean" not in err


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "mammo_fed.cli", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("mammo-fed ")
