"""A federation's folder and a site's, made by the real command lines."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mammo_fed.client.folder import SiteFolder
from mammo_fed.client.operations.cli import main as site_client
from mammo_fed.server.operations.cli import main as flower_server
from mammo_fed.server.operations.folder import FederationFolder

if TYPE_CHECKING:
    from network_trial import NetworkTrial

DISK_BYTES = 48 << 20


def call(main: Callable[[Sequence[str]], int], arguments: Sequence[object]) -> tuple[int, str, str]:
    """A command line in this process: exit code, standard output, standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="session")
def server() -> Callable[..., tuple[int, str, str]]:
    """`server("sites", folder)`: flower-server in this process, as (exit code, standard output, standard error)."""
    return lambda *arguments: call(flower_server, arguments)


@pytest.fixture(scope="session")
def client() -> Callable[..., tuple[int, str, str]]:
    """`client("check", folder)`: site-client in this process."""
    return lambda *arguments: call(site_client, arguments)


@pytest.fixture
def federation(server, tmp_path) -> FederationFolder:
    """A fresh federation's folder on this machine."""
    folder = tmp_path / "federation"
    code, _, err = server("init", folder, "--name", "mammo", "--host", "localhost", "--port", "18443", "--bind", "127.0.0.1")
    assert code == 0, err
    return FederationFolder.open(folder)


@pytest.fixture(scope="session")
def small_phantom() -> tuple[str, ...]:
    """A cohort of a few patches."""
    return ("data=phantom", "data.images_train=96", "data.images_test=48", "data.images_external=24", "data.image_size=64")


@pytest.fixture
def make_site(client, federation, small_phantom, cache, tmp_path) -> Callable[..., SiteFolder]:
    """`make_site("hospital-a", "data=phantom", ...)`: a fresh site's folder; a part of a small phantom by default."""

    def make(name: str, *arguments: object) -> SiteFolder:
        folder = tmp_path / name
        wanted = arguments or ("--share", "1/2", *small_phantom)
        ca = federation.path / "for-sites" / "ca.crt"
        address = ("--server", federation.about.address, "--ca", ca)
        code, _, err = client("init", folder, "--name", name, *address, "--cache", cache, *wanted)
        assert code == 0, err
        return SiteFolder.open(folder)

    return make


@pytest.fixture
def site(make_site) -> SiteFolder:
    """The first of two sites of a small phantom."""
    return make_site("hospital-a")


@pytest.fixture
def refused() -> Callable[[tuple[int, str, str]], str]:
    """`refused(server(...))`: the one line of a command line that was refused for bad input."""

    def line(finished: tuple[int, str, str]) -> str:
        code, out, err = finished
        assert (code, out) == (2, ""), err
        (only,) = [text for text in err.splitlines() if not text.startswith("WARNING")]
        assert only.startswith("error: ")
        return only

    return line


@pytest.fixture(scope="session")
def mode() -> Callable[[Path], int]:
    """The permission bits of a path."""
    return lambda path: path.stat().st_mode & 0o777


@pytest.fixture(scope="session")
def trial(cache, tmp_path_factory) -> Iterator[NetworkTrial]:
    """A server that runs, waits for more sites than will come, and can be reached from another network namespace."""
    # Imported late: they bring Flower along, and the tests of folders have no use for it.
    from network_trial import NetworkTrial
    from real_federation import SMALL_RUN, can_cut_lines, real_federation

    if not can_cut_lines():
        pytest.skip("needs root and `ip netns` to make a network namespace")
    root = tmp_path_factory.mktemp("network")
    (root / "asks").mkdir()
    with real_federation(root, num_sites=1, cache=cache, lines=True) as federation:
        # As many patients as that many sites would have; later words win.
        crowd = ("data.images_train=640", "data.images_test=320", "data.images_external=160", "federation.num_sites=8")
        federation.start_server(*SMALL_RUN, *crowd, "federation.round_timeout=3000")
        found = NetworkTrial(federation, root / "asks")
        federation.wait_for("may come in", seconds=120)
        yield found


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path | None]:
    """A small file system for the server, where this process may make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        yield None
        return
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)], check=False)
    if mounted.returncode:
        yield None
        return
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
