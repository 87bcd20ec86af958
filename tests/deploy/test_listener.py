"""A folder is a run's, a listener's or nobody's: the listener gives way to a run, and two runs never have it at once."""

from __future__ import annotations

import fcntl
import threading
import time

import pytest

from mammo_fed.errors import InvalidSetting


def test_deploy_listener_is_asked_for_the_folder_and_a_run_waits_until_it_has_it(federation):
    had = threading.Event()

    def run() -> None:
        with federation.hold():
            had.set()

    with federation.hold_between_runs():
        assert federation.state_of_server == "listening"
        assert not federation.run_wants_folder
        waiting = threading.Thread(target=run)
        waiting.start()
        while not federation.run_wants_folder:
            time.sleep(0.01)
        assert not had.is_set()
    waiting.join()
    assert had.is_set()
    assert federation.state_of_server == "stopped"


def test_deploy_listener_never_has_the_folder_of_a_run_and_a_second_run_is_refused(federation):
    with federation.hold():
        assert federation.state_of_server == "running"
        for other in (federation.hold, federation.hold_between_runs):
            with pytest.raises(InvalidSetting, match="in use by another flower-server"), other():
                pass


def test_status_that_takes_long_to_look_is_no_run_for_a_listener(federation):
    """A process that looks at the lock may be put to sleep before it lets go."""
    with federation.hold():
        pass
    with (federation.state / "run.lock").open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        assert not federation.run_wants_folder
        assert federation.state_of_server == "stopped"


def test_status_of_a_federation_that_never_ran_lists_who_is_registered(server, federation):
    code, out, _ = server("status", federation.path)
    assert code == 1
    assert "never started" in out
    assert "none is registered" in out


@pytest.mark.parametrize("seconds", ["-1", "inf", "nan", "1e9"])
def test_plan_waits_no_time_that_is_none(server, federation, refused, seconds):
    assert f"--wait={float(seconds):g} must be from 0 to 3600" in refused(server("plan", federation.path, f"--wait={seconds}"))


@pytest.mark.parametrize("command", ["listen", "run"])
def test_metrics_port_that_is_none_is_refused_before_anything_listens(server, federation, refused, command):
    more = ["federation.num_sites=1"] if command == "run" else []
    assert "--metrics-port=0 must be from 1 to 65535" in refused(server(command, federation.path, "--metrics-port=0", *more))
    own = federation.about.port
    assert f"--metrics-port={own} is the server's own" in refused(
        server(command, federation.path, f"--metrics-port={own}", *more)
    )
    # Nothing is left that --resume would begin.
    assert not list(federation.runs.iterdir())
