"""A site's folder: what init makes of a cohort, the file that a person edits, keys and their rotation, and the check."""

import json
import math
import subprocess
import tomllib
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from mammo_fed.client.folder import NetworkSettings, SiteFolder
from mammo_fed.client.policy import SiteFile, SitePolicy, read_site_file
from mammo_fed.client.rounds.site import Site
from mammo_fed.data.cache import ArrayCache
from mammo_fed.data.run_cohorts import load_pool
from mammo_fed.errors import DataError, InvalidSetting
from mammo_fed.federation.identity.keys import read_public_key
from mammo_fed.federation.identity.site_template import example_site
from mammo_fed.privacy.ledger.ledger import Budget, Ledger
from mammo_fed.settings import DataSettings
from mammo_fed.settings.compose import compose_settings
from mammo_fed.settings.data import Partition
from mammo_fed.simulations.launch import site_file


def edit(site: SiteFolder, old: str, new: str) -> None:
    text = site.site_file.read_text()
    assert old in text
    site.site_file.write_text(text.replace(old, new))


@pytest.fixture
def hospital(make_site, table) -> SiteFolder:
    """A site with a table that is not public."""
    return make_site("hospital-p", "data=csv", f"data.root={table.path}")


def test_init_makes_a_folder_that_is_closed_to_others(site, mode):
    folders = (site.path, site.path / "keys", Path(site.file.ledger), site.private)
    assert [mode(path) for path in folders] == [0o700] * 4
    assert [mode(path) for path in (site.key, site.site_file)] == [0o600] * 2
    assert list(Path(site.file.ledger).iterdir()) == []


def test_a_site_is_the_same_as_the_simulated_one(site, small_phantom, cache, tmp_path):
    settings = compose_settings([*small_phantom, "federation.num_sites=2", "engine.cache=null"]).settings
    store = ArrayCache(cache)
    pool = load_pool(settings.data, Partition(num_sites=2, how="uniform", alpha=1.0, seed=0), cache=store)
    simulated = site_file(settings, pool, 0, folder=tmp_path, cache=store)
    policy = replace(simulated.policy, min_patients=site.file.policy.min_patients)
    same = replace(simulated, site="hospital-a", folder=site.file.folder, ledger=site.file.ledger, policy=policy)
    assert site.file == same


@pytest.mark.parametrize("index", [0, 1])
def test_the_shares_of_a_common_cohort_are_apart_and_make_it_whole(make_site, small_phantom, cache, index):
    sites = [make_site(f"site-{number}", "--share", f"{number}/2", *small_phantom) for number in (1, 2)]
    patients = [set(Site(site.file).cohort.patients.tolist()) for site in sites]
    assert patients[index]
    assert not patients[0] & patients[1]
    pool = load_pool(sites[0].file.data, sites[0].file.share, cache=ArrayCache(cache))
    assert patients[0] | patients[1] == set(pool.cohort.patients.tolist())


def test_a_label_skewed_share_is_cut_as_in_a_simulation(make_site, training, cache, tmp_path):
    cut = ("--share", "2/3", "--partition", "label", "--partition-alpha", "0.5", "--seed", "4")
    site = make_site("site-2", *cut, *training)
    overrides = ("federation.num_sites=3", "federation.partition=label", "federation.partition_alpha=0.5", "seed=4")
    settings = compose_settings([*training, *overrides]).settings
    store = ArrayCache(cache)
    pool = load_pool(settings.data, site.file.share, cache=store)
    simulated = site_file(settings, pool, 1, folder=tmp_path, cache=store)
    assert site.file.share == simulated.share
    np.testing.assert_array_equal(Site(site.file).cohort.images, np.sort(pool.cohort.images[pool.rows[1]]))


def test_init_says_what_becomes_public_and_takes_other_numbers(client, federation, table, cache, tmp_path):
    ca = federation.path / "for-sites" / "ca.crt"
    arguments = ("--server", "localhost:18443", "--ca", ca, "--cache", cache, "data=csv", f"data.root={table.path}")
    given = ("--public-patients", "20", "--public-images", "40")
    code, _, err = client("init", tmp_path / "s", "--name", "h", *arguments, *given)
    assert code == 0, err
    assert "These numbers become PUBLIC in every run: 20 patients, 40 images" in err
    policy = SiteFolder.open(tmp_path / "s").file.policy
    assert (policy.public_patients, policy.public_images) == (20, 40)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--public-patients", "0"), "--public-patients=0 must be at least 1"),
        (("--public-images", "0"), "--public-images=0 must be at least 1"),
        (("--public-patients", "50", "--public-images", "40"), "--public-patients=50 must not be above --public-images=40"),
    ],
    ids=["patients", "images", "more patients"],
)
def test_init_refuses_numbers_that_no_cohort_has(client, federation, refused, table, cache, tmp_path, given, said):
    arguments = ("--server", "localhost:18443", "--ca", federation.path / "for-sites" / "ca.crt", "--cache", cache)
    of_table = ("data=csv", f"data.root={table.path}")
    assert said in refused(client("init", tmp_path / "s", "--name", "h", *arguments, *of_table, *given))
    assert not (tmp_path / "s").exists()


def test_init_warns_of_a_delta_that_allows_to_publish_a_patient(client, federation, table, cache, tmp_path):
    arguments = ("--server", "localhost:18443", "--ca", federation.path / "for-sites" / "ca.crt", "--cache", cache)
    given = ("--delta", "0.5", "data=csv", f"data.root={table.path}")
    code, _, err = client("init", tmp_path / "s", "--name", "h", *arguments, *given)
    assert code == 0, err
    assert "WARNING: delta=0.5 is not below 1 /" in err


def test_init_warns_where_no_data_was_given(client, federation, cache, tmp_path):
    arguments = ("--server", "localhost:18443", "--ca", federation.path / "for-sites" / "ca.crt", "--cache", cache)
    code, _, err = client("init", tmp_path / "s", "--name", "h", *arguments)
    assert code == 0, err
    assert "WARNING: no data=... was given: the site holds a made-up cohort" in err


def test_the_policy_of_an_unpublished_cohort_is_stricter(hospital, site):
    assert hospital.file.policy.units == ("patient",)
    assert not hospital.file.policy.public_class_balance
    assert "unknown" not in hospital.file.policy.provenance
    assert not hospital.file.data.public
    assert site.file.policy.units == ("patient", "image")


def test_nothing_that_a_site_may_publish_names_a_patient(hospital, table, client, federation):
    public = client("public-key", hospital.path, "--json")[1] + hospital.public_key_file.read_text()
    assert not any(name in public for name in table.planted)


def test_a_table_is_found_from_any_folder(hospital, table, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert hospital.file.data.root == str(table.path)
    edit(hospital, str(table.path), "../" * 20 + str(table.path).lstrip("/"))
    assert Path(SiteFolder.open(hospital.path).file.data.root or "").resolve() == table.path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--share", "3/2"), "--share=3/2 must be I/N"),
        (("--share", "0/2"), "--share=0/2 must be I/N"),
        (("--share", "two"), "--share=two must be I/N"),
        (("data=csv",), "data.root=null must name"),
        (("data=csv", "data.root=/nowhere/table.csv"), "/nowhere/table.csv"),
        (("--max-epsilon", "0"), "max_epsilon=0.0 must be above 0"),
        (("--delta", "1"), "delta=1.0 must be in (0, 1)"),
        (("--public-images", "0"), "--public-images=0 must be at least 1"),
        (("--max-images-per-patient", "0"), "--max-images-per-patient=0 must be at least 1"),
        (("seed=1",), "seed=1 is not of the site's"),
        (("privacy.target_epsilon=1",), "is not of the site's"),
        (("data.rot=1",), "data.rot is not a setting; did you mean data.root"),
        (("--server", "localhost"), "network.server=localhost must be HOST:PORT"),
        (("--server", "https://localhost:1"), "must be HOST:PORT"),
        (("--server", "localhost:0"), "must be HOST:PORT"),
        (("--server", "fed..example.org:8443"), "must be HOST:PORT"),
        (("--server", f"{'a' * 64}.org:8443"), "must be HOST:PORT"),
        (("--server", f"{'a.' * 200}org:8443"), "must be HOST:PORT"),
        (("--server", "xn--zz--:8443"), "must be HOST:PORT"),
        (("--name", "a/b"), "--name='a/b' must be"),
        (("--ca", "/nowhere"), "certificate /nowhere cannot be read"),
    ],
    ids=str,
)
def test_bad_values_are_named_and_nothing_is_left_behind(
    client, federation, refused, small_phantom, cache, tmp_path, arguments, said
):
    ca = federation.path / "for-sites" / "ca.crt"
    usual = ("--name", "h", "--server", "localhost:18443", "--ca", ca, "--cache", cache)
    source = () if any(argument.startswith("data") for argument in arguments) else small_phantom
    assert said in refused(client("init", tmp_path / "site", *usual, *arguments, *source))
    assert not (tmp_path / "site").exists()


def test_no_noise_is_refused_for_an_unpublished_cohort(client, federation, refused, table, tmp_path):
    ca = federation.path / "for-sites" / "ca.crt"
    arguments = ("--name", "h", "--server", "a:1", "--ca", ca, "--max-epsilon", "inf", "data=csv", f"data.root={table.path}")
    assert "--max-epsilon=inf must be a number" in refused(client("init", tmp_path / "site", *arguments))


def test_init_overwrites_no_site(client, federation, refused, small_phantom, site):
    before = site.key.read_bytes()
    ca = federation.path / "for-sites" / "ca.crt"
    line = refused(client("init", site.path, "--name", "h", "--server", "a:1", "--ca", ca, *small_phantom))
    assert "must be new or empty" in line
    assert site.key.read_bytes() == before


def test_the_template_knows_every_key_of_a_site_and_no_other(tmp_path):
    path = tmp_path / "site.toml"
    path.write_text(example_site(server="localhost:1"))
    values = tomllib.loads(path.read_text())
    named = {"policy": SitePolicy, "share": Partition, "network": NetworkSettings, "data": DataSettings}
    assert set(values) == ({field.name for field in fields(SiteFile)} | {"network"})
    for name, kind in named.items():
        assert set(values[name]) | ({"fold"} if name == "data" else set()) == {field.name for field in fields(kind)}
    assert read_site_file(path).policy.max_epsilon == 6.0


def test_toml_and_json_say_the_same(site, tmp_path):
    assert read_site_file(site.file.write(tmp_path / "site.json")) == read_site_file(site.site_file)


def test_toml_knows_infinity_and_leaves_out_what_is_not_set(site):
    edit(site, "max_epsilon = 6.0", "max_epsilon = inf")
    file = read_site_file(site.site_file)
    assert math.isinf(file.policy.max_epsilon)
    assert (file.data.root, file.data.fold) == (None, None)


@pytest.mark.parametrize(
    ("old", "new", "kind", "said"),
    [
        ("max_epsilon = 6.0", "max_epsilon = nan", InvalidSetting, "max_epsilon=nan must be above 0"),
        ("max_epsilon = 6.0", "max_epsilons = 6.0", InvalidSetting, "policy.max_epsilons is not a setting"),
        ("max_epsilon = 6.0\n", "", InvalidSetting, "policy.max_epsilon is missing"),
        ("max_epsilon = 6.0", "max_epsilon = six", DataError, "is not TOML .*line"),
        ('units = ["patient", "image"]', 'units = ["everybody"]', InvalidSetting, "policy.units='everybody' must be"),
        ("threads = 0", "threads = 0\nport = 1", InvalidSetting, "port is not a setting"),
        ("executor_port = ", "port = ", InvalidSetting, "network.port is not a setting"),
        ('executor_port = "auto"', "executor_port = 70000", InvalidSetting, "executor_port=70000 must be from 1 to 65535"),
        ("[network]", "[net]", InvalidSetting, "network is missing"),
        ('site = "hospital-a"', 'site = "../a"', InvalidSetting, "site='../a' must be"),
    ],
    ids=str,
)
def test_a_bad_site_file_is_named(site, old, new, kind, said):
    edit(site, old, new)
    with pytest.raises(kind, match=said):
        SiteFolder.open(site.path)


def test_a_policy_without_account_and_filter_takes_the_usual_ones(site):
    edit(site, 'account = "default"\n', "")
    edit(site, 'filter = "auto"\n', "")
    assert read_site_file(site.site_file) == site.file


@pytest.mark.parametrize("secret", ["keys/site.key", "site.toml", "."])
def test_a_secret_that_others_can_read_stops_the_site(client, refused, site, secret):
    (site.path / secret).chmod(0o755)
    assert "must be closed to others: chmod" in refused(client("run", site.path))


def test_a_folder_that_is_no_site_is_named(client, refused, tmp_path):
    for command in ("run", "status", "check", "public-key", "rotate-key"):
        assert "site-client init FOLDER" in refused(client(command, tmp_path))


def test_the_key_pair_fits_and_is_in_opensshs_format(site, client):
    shown = client("public-key", site.path)[1]
    assert shown == site.public_key_file.read_text()
    assert shown.split()[0::2] == ["ecdsa-sha2-nistp384", "hospital-a"]
    derived = subprocess.run(["ssh-keygen", "-y", "-f", site.key], capture_output=True, text=True, check=True).stdout
    assert derived.split()[:2] == shown.split()[:2]
    assert client("public-key", site.path, "--fingerprint")[1].strip() == site.public_key().fingerprint


def test_rotation_keeps_the_old_key_until_it_is_over(client, refused, site, mode):
    old = site.key.read_bytes()
    assert client("rotate-key", site.path)[0] == 0
    assert site.old_key.read_bytes() == old
    assert site.key.read_bytes() != old
    assert [mode(path) for path in (site.key, site.old_key)] == [0o600] * 2
    assert read_public_key(site.public_key_file) == site.public_key()
    assert "the last rotation is not over" in refused(client("rotate-key", site.path))
    assert client("rotate-key", site.path, "--done")[0] == 0
    assert not site.old_key.exists()
    assert client("rotate-key", site.path)[0] == 0


def test_rotation_can_be_undone(client, refused, site):
    before = (site.key.read_bytes(), site.public_key_file.read_bytes())
    client("rotate-key", site.path)
    assert client("rotate-key", site.path, "--undo")[0] == 0
    assert (site.key.read_bytes(), site.public_key_file.read_bytes()) == before
    assert not site.old_key.exists()
    assert "rotate first" in refused(client("rotate-key", site.path, "--undo"))


def test_a_rotated_key_is_registered_by_replacing_the_old_one(client, server, refused, site, federation):
    server("register", federation.path, site.public_key_file)
    client("rotate-key", site.path)
    assert "then give --replace" in refused(server("register", federation.path, site.public_key_file))
    assert server("register", federation.path, site.public_key_file, "--replace")[0] == 0
    assert [one.key for one in federation.registry.read()] == [site.public_key()]


def test_insecure_is_refused_for_an_unpublished_cohort(client, refused, hospital):
    assert "--insecure must not be given for a cohort that is not public" in refused(client("run", hospital.path, "--insecure"))


def checks(client, site: SiteFolder) -> dict[str, dict[str, object]]:
    code, out, err = client("check", site.path, "--json")
    found = json.loads(out)
    assert code == (0 if found["ready"] else 2), err
    return {check["name"]: check for check in found["checks"]}


def test_check_finds_everything_right_but_a_server_that_is_not_there(client, site):
    edit(site, "localhost:18443", "localhost:9")
    found = checks(client, site)
    assert {name for name, check in found.items() if not check["ok"]} == {"server"}
    assert "check the address, the firewall" in str(found["server"]["message"])
    code, out, _ = client("check", site.path)
    assert (code, len(out.splitlines())) == (2, 5)


def test_check_names_what_is_wrong_with_key_cohort_and_authority(client, site, federation):
    site.public_key_file.unlink()
    edit(site, "min_patients = 10", "min_patients = 5000")
    site.authority.write_bytes(federation.server_certificate.read_bytes())
    found = checks(client, site)
    assert not any(found[name]["ok"] for name in ("key", "cohort", "authority"))
    assert "min_patients=5000: every run is refused" in str(found["cohort"]["message"])


def test_check_names_a_ledger_that_is_gone_or_cut_off(client, site):
    budget = Budget(max_epsilon=6.0, delta=1e-4)
    with Ledger.open(Path(site.file.ledger), site="hospital-a", budget=budget, filter="gdp") as ledger:
        head = ledger.head()
    (site.private / "ledger-head").write_text(head)
    assert "a further run of epsilon 6 fits under 6" in str(checks(client, site)["ledger"]["message"])
    for part in Path(site.file.ledger).iterdir():
        part.unlink()
    found = checks(client, site)["ledger"]
    assert not found["ok"]
    assert "its ledger is gone" in str(found["message"])


def test_check_opens_no_ledger(client, site):
    assert "the first run opens one" in str(checks(client, site)["ledger"]["message"])
    assert list(Path(site.file.ledger).iterdir()) == []


def test_status_of_a_site_that_is_stopped_is_exit_code_1(client, site):
    edit(site, "localhost:18443", "localhost:9")
    code, out, _ = client("status", site.path, "--json")
    assert (code, json.loads(out)["site_client"]) == (1, "stopped")


def test_two_clients_do_not_share_a_folder(site):
    with site.hold(), pytest.raises(InvalidSetting, match="in use by another site-client"), site.hold():
        pytest.fail("the second client got the folder")
