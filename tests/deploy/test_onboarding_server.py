"""A federation's folder: what is in it, who may come, and what is refused."""

import json
import os
import shutil

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from mammo_fed.errors import DataError, InvalidSetting
from mammo_fed.federation.identity.keys import SiteKey, make_private_key, public_key_of, read_public_key
from mammo_fed.server.operations.folder import FederationFolder
from mammo_fed.settings.compose import read_composed


@pytest.fixture
def key_file(tmp_path):
    """`key_file("hospital-a")`: a fresh site's NAME.pub."""

    def make(name: str):
        private = tmp_path / f"{name}.key"
        private.write_bytes(make_private_key())
        path = tmp_path / f"{name}.pub"
        path.write_bytes(public_key_of(private).file_content(name))
        return path

    return make


def test_init_makes_a_folder_that_is_closed_to_others(federation, mode):
    secrets = (federation.path, federation.state, federation.authority_key, federation.server_key, federation.runs)
    assert [mode(path) for path in secrets] == [0o700, 0o700, 0o600, 0o600, 0o700]
    assert {path.name for path in (federation.path / "for-sites").iterdir()} == {"ca.crt", "site.toml", "README.txt"}
    assert federation.registry.read() == ()


def test_what_sites_are_given_holds_no_secret_and_names_the_address_and_the_fingerprint(federation):
    given = [path.read_text() for path in (federation.path / "for-sites").iterdir()]
    assert not any("PRIVATE" in text for text in given)
    readme = (federation.path / "for-sites" / "README.txt").read_text()
    assert "--server localhost:18443" in readme
    assert (federation.path / "for-sites" / "ca.crt").read_bytes() == federation.authority_certificate.read_bytes()


@pytest.mark.parametrize("present", ["federation.json", "something else"])
def test_init_overwrites_nothing(server, refused, tmp_path, present):
    (tmp_path / present).write_text("kept")
    line = refused(server("init", tmp_path, "--name", "mammo", "--host", "localhost"))
    assert "must be new or empty" in line
    assert [path.name for path in tmp_path.iterdir()] == [present]
    assert (tmp_path / present).read_text() == "kept"


def test_init_takes_an_empty_folder_such_as_a_mounted_volume(server, tmp_path, mode):
    tmp_path.chmod(0o755)
    assert server("init", tmp_path, "--name", "mammo", "--host", "localhost")[0] == 0
    assert FederationFolder.open(tmp_path).about.name == "mammo"
    assert mode(tmp_path) == 0o700


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--name", "../up", "--host", "localhost"), "--name='../up' must be 1 to 64 letters"),
        (("--name", "mammo", "--host", "https://fed.example"), "--host=https://fed.example must be a DNS name"),
        (("--name", "mammo", "--host", "fed.example:8443"), "without a port"),
        (("--name", "mammo", "--host", "::"), "--host=:: must be"),
        (("--name", "mammo", "--host", "10.0.0.256"), "--host=10.0.0.256 must be"),
        (("--name", "mammo", "--host", "localhost", "--port", "0"), "--port=0 must be from 1 to 65535"),
        (("--name", "mammo", "--host", "localhost", "--bind", "here"), "--bind=here must be an address"),
        (("--name", "mammo", "--host", "localhost", "--days", "0"), "--days=0 must be at least 1"),
        (("--name", "mammo", "--host", "localhost", "--ca-days", "-1"), "--ca-days=-1 must be at least 1"),
    ],
    ids=str,
)
def test_bad_values_are_named_and_nothing_is_left_behind(server, refused, tmp_path, arguments, said):
    assert said in refused(server("init", tmp_path / "federation", *arguments))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("host", "address"),
    [("10.1.2.3", "10.1.2.3:8443"), ("2001:db8::1", "[2001:db8::1]:8443"), ("fed.example", "fed.example:8443")],
)
def test_sites_are_told_the_first_host_with_the_port(server, tmp_path, host, address):
    arguments = ("--name", "mammo", "--host", host, "--host", "other.example", "--json")
    code, out, err = server("init", tmp_path / "federation", *arguments)
    assert code == 0, err
    assert json.loads(out)["address"] == address


def test_a_registered_key_is_listed_with_the_fingerprint_that_ssh_keygen_shows(server, federation, key_file):
    path = key_file("hospital-a")
    assert server("register", federation.path, path)[0] == 0
    (listed,) = json.loads(server("sites", federation.path, "--json")[1])
    digest = listed["fingerprint"].removeprefix("SHA256:")
    assert listed["site"] == "hospital-a"
    assert len(digest) == 43
    assert listed["fingerprint"] == read_public_key(path).fingerprint


def test_a_registered_key_is_what_flower_takes(federation, key_file):
    federation.registry.register("hospital-a", read_public_key(key_file("a")), replace=False)
    (site,) = federation.registry.read()
    loaded = serialization.load_pem_public_key(site.key.pem)
    assert isinstance(loaded.curve, ec.SECP384R1)
    line = loaded.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    assert SiteKey(line=line.decode()) == site.key


def test_registering_a_site_twice_changes_nothing(server, federation, key_file):
    path = key_file("hospital-a")
    server("register", federation.path, path)
    code, out, _ = server("register", federation.path, path, "--json")
    assert (code, json.loads(out)["changed"]) == (0, False)


def test_another_key_for_a_site_needs_to_be_asked_for(server, federation, refused, key_file):
    server("register", federation.path, key_file("first"), "--name", "hospital-a")
    new = key_file("second")
    assert "then give --replace" in refused(server("register", federation.path, new, "--name", "hospital-a"))
    assert server("register", federation.path, new, "--name", "hospital-a", "--replace")[0] == 0
    assert [site.key for site in federation.registry.read()] == [read_public_key(new)]


def test_a_key_that_was_replaced_never_comes_back(server, federation, refused, key_file):
    old, new = key_file("first"), key_file("second")
    server("register", federation.path, old, "--name", "hospital-a")
    server("register", federation.path, new, "--name", "hospital-a", "--replace")
    for name in ("hospital-a", "hospital-b"):
        assert "must not come back" in refused(server("register", federation.path, old, "--name", name, "--replace"))


def test_a_revoked_site_is_gone_and_its_key_never_comes_back(server, federation, refused, key_file):
    old = key_file("hospital-a")
    server("register", federation.path, old)
    assert server("revoke", federation.path, "hospital-a")[0] == 0
    assert federation.registry.read() == ()
    assert "must not come back" in refused(server("register", federation.path, old))
    assert server("register", federation.path, key_file("new"), "--name", "hospital-a")[0] == 0


def test_revoking_names_the_sites_that_there_are(server, federation, refused, key_file):
    server("register", federation.path, key_file("hospital-a"))
    assert "there are hospital-a" in refused(server("revoke", federation.path, "hospital-b"))


def test_one_key_is_one_site(server, federation, refused, key_file):
    path = key_file("hospital-a")
    server("register", federation.path, path)
    assert "already registered for hospital-a" in refused(server("register", federation.path, path, "--name", "hospital-b"))


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "../a", "a.b", "a b", "a\nb", "x" * 65, "-a"])
def test_a_name_that_is_no_file_name_is_refused(server, federation, refused, key_file, name):
    line = refused(server("register", federation.path, key_file("a"), f"--name={name}" if name else "--name=.pub"))
    assert "must be 1 to 64 letters" in line
    assert federation.registry.read() == ()


def _openssh(key) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (make_private_key(), "holds a private key"),
        (_openssh(ec.generate_private_key(ec.SECP256R1())), "must be one line"),
        (_openssh(ed25519.Ed25519PrivateKey.generate()), "must be one line"),
        (b"", "must be one line"),
        (b"\xff\xfe\x00", "must be one line"),
        (b"ecdsa-sha2-nistp384", "must be one line"),
        (b"ecdsa-sha2-nistp384 AAAA", "must be one line"),
        (b"ecdsa-sha2-nistp384 \xc3\xa9", "must be one line"),
        (_openssh(ec.generate_private_key(ec.SECP384R1())) + b"\n" + b"second line", "must be one line"),
        (b"ecdsa-sha2-nistp384 " + b"A" * 20_000, "must be one line"),
    ],
    ids=["private", "p256", "ed25519", "empty", "binary", "no key", "short", "accent", "two lines", "long"],
)
def test_what_is_not_one_p384_public_key_is_refused(server, federation, refused, tmp_path, content, said):
    path = tmp_path / "hospital-a.pub"
    path.write_bytes(content)
    assert said in refused(server("register", federation.path, path))
    assert federation.registry.read() == ()


def test_a_missing_key_file_is_named(server, federation, refused, tmp_path):
    assert "cannot be read (No such file or directory)" in refused(server("register", federation.path, tmp_path / "no.pub"))


def test_a_folder_that_is_no_federation_is_named_with_the_way_to_make_one(server, refused, tmp_path):
    for command in ("sites", "run", "renew", "status"):
        assert "flower-server init FOLDER" in refused(server(command, tmp_path))


@pytest.mark.parametrize("secret", ["tls/server.key", "state", "."])
def test_a_secret_that_others_can_read_stops_the_server(server, federation, refused, secret):
    path = federation.path / secret
    path.chmod(0o755)
    line = refused(server("run", federation.path, "federation.num_sites=2"))
    assert f"chmod {'600' if secret.endswith('key') else '700'}" in line


def test_a_damaged_federation_file_is_named(federation):
    about = federation.path / "federation.json"
    about.write_text("{")
    with pytest.raises(DataError, match="is not JSON; restore it"):
        FederationFolder.open(federation.path)
    about.write_text(json.dumps({"format": 2, "name": "a", "hosts": ["a"], "port": 1, "bind": "::"}))
    with pytest.raises(InvalidSetting, match="format=2 must be 1"):
        FederationFolder.open(federation.path)


def test_run_waits_for_as_many_sites_as_are_registered(server, federation, key_file, tmp_path):
    for name in ("a", "b", "c"):
        server("register", federation.path, key_file(name))
    code, out, _ = server("run", federation.path, "--cfg", "job")
    (tmp_path / "config.yaml").write_text(out)
    assert code == 0
    assert read_composed(tmp_path).settings.federation.num_sites == 3
    assert "num_sites: 2\n" in server("run", federation.path, "--cfg", "job", "federation.num_sites=2")[1]
    assert list(federation.runs.iterdir()) == []


def test_run_without_registered_sites_asks_for_them(server, federation, refused):
    assert "register the sites" in refused(server("run", federation.path))


def test_run_names_a_setting_that_does_not_exist(server, federation, refused):
    assert "seeds is not a setting; did you mean seed?" in refused(server("run", federation.path, "--insecure", "seeds=1"))


def test_a_run_goes_on_with_the_settings_that_it_began_with(server, federation, refused):
    for name, seed in (("2026-01-01_00-00-00", 3), ("2026-01-02_00-00-00", 5)):
        folder = federation.runs / name
        folder.mkdir()
        text = server("run", federation.path, "--cfg", "job", "--insecure", f"seed={seed}", "privacy.target_epsilon=inf")[1]
        (folder / "config.yaml").write_text(text)
    assert read_composed(folder).settings.privacy.target_epsilon == float("inf")
    assert "seed: 5\n" in server("run", federation.path, "--resume", "--cfg", "job")[1]
    assert "seed=9 must not be given with --resume" in refused(server("run", federation.path, "--resume", "seed=9"))
    (folder / "record.json").write_text("{}")
    assert "seed: 3\n" in server("run", federation.path, "--resume", "--cfg", "job")[1]
    given = f"hydra.run.dir={folder}"
    assert "is a run that is done" in refused(server("run", federation.path, "--resume", given))


def test_resume_without_an_unfinished_run_says_so(server, federation, refused):
    assert "finds no unfinished run" in refused(server("run", federation.path, "--resume"))


@pytest.mark.parametrize("text", ["{", "seed: [", "- 1", "seed: 1"], ids=str)
def test_a_damaged_configuration_is_named(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InvalidSetting):
        read_composed(tmp_path)


def test_two_servers_do_not_share_a_folder(federation):
    with federation.hold(), pytest.raises(InvalidSetting, match="in use by another flower-server"), federation.hold():
        pytest.fail("the second server got the folder")
    with federation.hold():
        assert (federation.state / "lock").exists()


def test_a_copy_of_the_folder_is_the_folder(federation, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.move(federation.path, moved)
    assert FederationFolder.open(moved).certificate().hosts == (*federation.about.hosts, "127.0.0.1", "::1")


def test_help_names_every_command(server):
    code, out, _ = server("--help")
    assert code == 0
    assert all(command in out for command in ("init", "register", "revoke", "renew", "run", "status", "sites"))


def test_a_prepared_run_is_what_resume_goes_on_with(server, federation):
    code, _, err = server("run", federation.path, "--prepare", "federation.num_sites=2", "seed=7")
    assert (code, "--resume" in err) == (0, True)
    assert "seed: 7\n" in server("run", federation.path, "--resume", "--cfg", "job")[1]


def test_prepare_overwrites_no_run(server, federation, refused, tmp_path):
    arguments = ("run", federation.path, "--prepare", "federation.num_sites=2", f"hydra.run.dir={tmp_path / 'run'}")
    assert server(*arguments)[0] == 0
    assert "already holds a run; choose another folder, or go on with it: --resume" in refused(server(*arguments))


def test_resume_takes_the_newest_run_but_one_that_ended_for_bad_input_only_if_there_is_no_other(federation):
    runs = []
    for number, code in enumerate((None, 1, 2)):
        run = federation.runs / f"run-{number}"
        run.mkdir(parents=True)
        (run / "config.yaml").write_text("{}")
        os.utime(run / "config.yaml", ns=(number, number))
        if code is not None:
            (run / "outcome.json").write_text(json.dumps({"exit_code": code, "message": ""}))
        runs.append(run)
    assert federation.unfinished_run() == runs[1]
    for run in runs[:2]:
        (run / "record.json").write_text("{}")
    assert federation.unfinished_run() == runs[2]


def test_max_images_of_a_site_are_kept_changed_and_forgotten_with_it(server, refused, federation, key_file):
    path = key_file("hospital-a")

    def limits() -> dict[str, int | None]:
        return {site["site"]: site["max_images"] for site in json.loads(server("sites", federation.path, "--json")[1])}

    assert "at most 500 images" in server("register", federation.path, path, "--max-images", 500)[2]
    assert limits() == {"hospital-a": 500}
    server("register", federation.path, path)
    assert limits() == {"hospital-a": 500}
    assert json.loads(server("register", federation.path, path, "--max-images", 700, "--json")[1])["changed"]
    new = key_file("rotated")
    server("register", federation.path, new, "--name", "hospital-a", "--replace")
    assert limits() == {"hospital-a": 700}
    server("revoke", federation.path, "hospital-a")
    server("register", federation.path, key_file("another"), "--name", "hospital-a")
    assert limits() == {"hospital-a": None}
    for bad in (0, -3, 10**9 + 1):
        assert f"--max-images={bad} must be from 1 to 1000000000" in refused(
            server("register", federation.path, key_file(f"bad{bad}"), f"--max-images={bad}")
        )


@pytest.mark.parametrize("text", ["", "many", "0", "-5", "1.5", "٣"])
def test_max_images_that_somebody_wrote_by_hand_are_read_or_refused_in_one_line(server, refused, federation, key_file, text):
    server("register", federation.path, key_file("hospital-a"), "--max-images", 500)
    (limit,) = federation.path.rglob("hospital-a.max-images")
    limit.write_text(text)
    assert "must hold one whole number" in refused(server("sites", federation.path))
