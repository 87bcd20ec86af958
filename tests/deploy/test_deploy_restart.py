"""What a federation's server finds when it starts again: sites that could not say good-bye, and a disk without room."""

from __future__ import annotations

import signal
from contextlib import suppress

import pytest
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.server.superlink.linkstate import LinkState
from flwr.supercore.constant import NodeStatus
from flwr.superlink.config_loader import get_objectstore_linkstate_factories
from flwr.superlink.federation import NoOpFederationManager
from real_federation import SMALL_RUN, real_federation

from mammo_fed.federation.flwr_internals.guard import let_return

PATIENCE = 30.0
# Flower's database library speaks of its own configuration.
pytestmark = pytest.mark.filterwarnings("ignore:No path_separator found:DeprecationWarning")


@pytest.fixture
def link(tmp_path):
    """`link()`: the state of a SuperLink that has just started, on one database."""

    def start() -> LinkState:
        _, states = get_objectstore_linkstate_factories(str(tmp_path / "link.db"), NoOpFederationManager())
        return states.state()

    return start


@pytest.fixture
def node(link) -> int:
    """A node that was present when its SuperLink ended."""
    state = link()
    node = state.create_node("owner", "owner", b"key", heartbeat_interval=PATIENCE)
    assert node != SUPERLINK_NODE_ID
    assert state.activate_node(node, PATIENCE)
    return node


def test_restart_by_itself_turns_away_a_site_that_could_not_say_good_bye(link, node):
    assert not link().activate_node(node, PATIENCE)


def test_restart_lets_a_site_return_that_could_not_say_good_bye(link, node):
    state = link()
    let_return(state)
    assert state.activate_node(node, PATIENCE)
    assert [found.status for found in state.get_node_info(node_ids=[node])] == [NodeStatus.ONLINE]


def test_restart_lets_a_site_return_once(link, node):
    state = link()
    let_return(state)
    assert state.activate_node(node, PATIENCE)
    assert not state.activate_node(node, PATIENCE)


def test_restart_keeps_a_second_user_of_a_key_out_while_the_first_is_heard(link, node):
    state = link()
    let_return(state)
    assert state.acknowledge_node_heartbeat(node, PATIENCE)
    assert not state.activate_node(node, PATIENCE)


def test_restart_lets_a_new_site_come_and_a_stopped_one_return(link):
    state = link()
    let_return(state)
    node = state.create_node("owner", "owner", b"key", heartbeat_interval=PATIENCE)
    assert state.activate_node(node, PATIENCE)
    assert state.deactivate_node(node)
    assert state.activate_node(node, PATIENCE)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_rotation_of_a_key_in_the_middle_of_a_run_loses_no_round(tmp_path, cache, client, server):
    waiting = (
        "federation.rounds=8",
        "federation.round_min_wait=150",
        "federation.round_timeout=200",
        "federation.resend_after=60",
    )
    with real_federation(tmp_path, num_sites=2, cache=cache) as federation:
        for name in federation.sites:
            federation.start_client(name)
        federation.start_server(*SMALL_RUN, *waiting)
        federation.wait_for("round 1/8", seconds=180)
        assert client("rotate-key", federation.site("site-1"))[0] == 0
        key = federation.site("site-1") / "keys" / "site-1.pub"
        assert server("register", federation.fed, key, "--replace")[0] == 0
        assert federation.wait(200) == 0
        assert federation.said().count("site-1 may come in") == 2
        sites = federation.record.privacy.sites
    assert [site.site for site in sites if site.unanswered or site.refused] == []


def fill(path) -> None:
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_restart_on_a_full_disk_waits_for_room(tmp_path, disk, cache):
    if disk is None:
        pytest.skip("needs root to mount a small file system")
    root = tmp_path / "root"
    root.mkdir()
    with real_federation(root, num_sites=1, cache=cache, server_root=disk) as federation:
        federation.start_server(*SMALL_RUN, "--prepare")
        assert federation.wait(60) == 0
        filler = disk / "filler"
        fill(filler)
        federation.start_server(resume=True)
        federation.wait_for("no room on the disk", seconds=60)
        filler.unlink()
        federation.wait_for("the server listens", seconds=60)
        federation.server.send_signal(signal.SIGINT)
        assert federation.wait(60) == 130
        assert "internal failure" not in federation.said()
