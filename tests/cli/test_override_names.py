"""Names of files and folders in overrides are taken as they are typed, by every command; what cannot be is one clear line."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mammo_fed.cli.main import main as mammo_fed
from mammo_fed.client.folder import SiteFolder
from mammo_fed.client.operations.cli import main as site_client
from mammo_fed.errors import InvalidSetting
from mammo_fed.server.operations.cli import main as flower_server
from mammo_fed.settings.compose import compose_gan, compose_settings, expand_sweep, read_composed, settings_yaml

NAMES = (
    "Mammographie für Übungen",
    "乳房撮影",
    "backup~",
    "~old",
    "scans (2)",
    "a=b",
    "it's",
    'the "new" one',
    "[draft]",
    "{x}",
    "#1",
    "Smith & Sons",
    "50%",
    "a,b",
    "glob(*)",
    "range(1,3)",
    "choice(a,b)",
    "a:b;c|d",
    "null ",
    "tab\tname",
    "back\\slash",
    "1e3",
    "true",
    "@home!",
    "e\u0301",
)


def call(main: Callable[[Sequence[str]], int], *arguments: object) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, out.getvalue(), err.getvalue()


def one_line(finished: tuple[int, str, str]) -> str:
    code, _, err = finished
    assert code == 2, finished
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize("name", NAMES)
def test_override_name_is_taken_as_it_is_typed(name):
    made = compose_settings([f"data.root={name}", f"synthesis.root=/data/{name}", f"hydra.run.dir={name}/x", "seed=3"])
    assert (made.settings.data.root, made.settings.synthesis.root) == (name, f"/data/{name}")
    assert made.folder == Path(f"{name}/x")
    assert made.settings.seed == 3


@pytest.mark.parametrize("name", NAMES[:4])
def test_override_name_is_taken_for_a_generator(name):
    assert compose_gan([f"data.root={name}"]).settings.data.root == name


@settings(max_examples=8, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).filter(lambda name: "${" not in name))
@example("'")
@example("a'b\"c")
@example("\\'")
def test_override_any_name_behind_a_slash_is_taken_as_it_is_typed(name):
    assert compose_settings([f"data.root=/{name}"]).settings.data.root == f"/{name}"


@pytest.mark.parametrize("name", ["scans (2)", "für", "it's [x]#", 'a"b'])
def test_override_name_is_kept_in_the_configuration_of_a_run(name, tmp_path):
    made = compose_settings([f"data.root=/data/{name}"])
    (tmp_path / "config.yaml").write_text(settings_yaml(made.settings), encoding="utf-8")
    assert read_composed(tmp_path).settings == made.settings
    (tmp_path / "config.yaml").write_text(made.yaml, encoding="utf-8")
    assert read_composed(tmp_path).settings.data.root == f"/data/{name}"


def test_override_in_quotes_or_with_an_interpolation_is_still_of_hydras_grammar(monkeypatch):
    monkeypatch.setenv("FOLDER_OF_TRIAL", "/from/environment")
    assert compose_settings(["data.root='/a b'"]).settings.data.root == "/a b"
    assert compose_settings(["data.root=${oc.env:FOLDER_OF_TRIAL}"]).settings.data.root == "/from/environment"
    assert compose_settings(["data.root=null"]).settings.data.root is None


def test_override_of_two_of_one_setting_the_later_one_counts():
    assert compose_settings(["data.root=/(1)", "data.root='/b'"]).settings.data.root == "/b"
    assert compose_settings(["data.root='/b'", "data.root=/(1)"]).settings.data.root == "/(1)"


def test_override_in_a_sweep_takes_names_between_commas_and_lists_nothing():
    assert expand_sweep(["data.root=/ä (1),/ö#", "seed=1,2"]) == [
        ["data.root=/ä (1)", "seed=1"],
        ["data.root=/ä (1)", "seed=2"],
        ["data.root=/ö#", "seed=1"],
        ["data.root=/ö#", "seed=2"],
    ]
    assert expand_sweep(["seed=range(0,3)"]) == [["seed=0"], ["seed=1"], ["seed=2"]]


@pytest.mark.parametrize(
    "override",
    [
        "data=glob(*)",
        "seed=glob(*)",
        "data.root=glob(*)",
        "seed=glob([a*],exclude=b)",
        "seed=range(0,100000000)",
        "ü",
        "=1",
        "",
    ],
)
def test_override_that_a_sweep_cannot_take_is_one_line(override):
    line = one_line(call(mammo_fed, "simulate", "-m", "--cfg", "job", override))
    assert "Traceback" not in line


@pytest.mark.parametrize(
    "override", ["data=ü", "seed=(1)", "privacy.unit=[x", "unknown.key=#", "ü=1", "=x", "data.root=~/x", "seed=glob(*)"]
)
@pytest.mark.parametrize("command", [("simulate", "--cfg", "job"), ("demo", "--cfg", "job")])
def test_override_that_cannot_be_is_one_line(override, command):
    name, *rest = command
    one_line(call(mammo_fed, name, *rest, override))


def test_override_names_are_taken_by_every_command(tmp_path):
    folder = tmp_path / "Übung (1) #2 & 'x' [y]=z"
    folder.mkdir()
    table = folder / "tábla ~.csv"
    table.write_text("patient,image,label\n")
    code, out, err = call(mammo_fed, "simulate", "--cfg", "job", "data=csv", f"data.root={table}")
    assert code == 0, err
    assert "tábla ~.csv" in out
    code, out, err = call(mammo_fed, "reproduce", "experiment=dbr156", "--print-overrides", f"data.root={table}")
    assert code == 0, err
    assert f"data.root={table}" in out.splitlines()
    fed, site = folder / "fed", folder / "site"
    code, _, err = call(flower_server, "init", fed, "--name", "t", "--host", "localhost")
    assert code == 0, err
    code, _, err = call(
        site_client, "init", site, "--name", "a", "--server", "localhost:8443", "--ca", fed / "tls" / "ca.crt", "data=phantom",
        "data.images_train=96", "data.images_test=48", "data.images_external=24", "data.image_size=64",
    )  # fmt: skip
    assert code == 0, err
    assert SiteFolder.open(site).file.data.source == "phantom"
    run = folder / "run,1"
    code, _, err = call(
        flower_server, "run", fed, "--insecure", "--prepare", "federation.num_sites=1", f"hydra.run.dir={run}", "data=csv",
        f"data.root={table}",
    )  # fmt: skip
    assert code == 0, err
    assert read_composed(run).settings.data.root == str(table)


def test_override_with_a_nul_names_no_file():
    with pytest.raises(InvalidSetting, match=r"^data\.root=a\?b has a NUL in it"):
        compose_settings(["data=csv", "data.root=a\0b"])


def test_override_error_names_what_is_wrong():
    with pytest.raises(InvalidSetting, match="data=ü must be one of"):
        compose_settings(["data=ü"])
    with pytest.raises(InvalidSetting, match=r'begins with ~.*"\$HOME"/x'):
        compose_settings(["data.root=~/x"])
