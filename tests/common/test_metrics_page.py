"""The page for Prometheus: its format, whom it answers, and what it does when something is wrong."""

from __future__ import annotations

import socket
import struct

import httpx
import pytest

from mammo_fed.common import metrics_page as metrics_page_module
from mammo_fed.common.metrics_page import Figure, metrics_page
from mammo_fed.errors import InvalidSetting


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def figures():
    yield Figure(name="round", text="Round of the run.", values={(): 3.0})
    yield Figure(name="site_connected", text="Connected.", labels=("site",), values={("a",): 1.0, ('b"\n{x="',): 0.0})


def get(port: int, *, host: str | None = None, path: str = "/metrics", method: str = "GET") -> httpx.Response:
    headers = {} if host is None else {"Host": host}
    return httpx.request(method, f"http://127.0.0.1:{port}{path}", headers=headers, trust_env=False)


def test_metrics_are_in_the_text_format_and_labels_are_escaped(port):
    with metrics_page(port, figures):
        found = get(port)
    assert found.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    lines = found.text.splitlines()
    assert "# TYPE mammo_fed_round gauge" in lines
    assert "mammo_fed_round 3.0" in lines
    assert 'mammo_fed_site_connected{site="a"} 1.0' in lines
    assert 'mammo_fed_site_connected{site="b\\"\\n{x=\\""} 0.0' in lines


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "169.254.0.1:9", "[::1]:9", ""])
def test_metrics_answer_to_the_machines_own_names_only(port, host):
    with metrics_page(port, figures):
        assert get(port, host=host).status_code == 421
        assert get(port, host=f"localhost:{port}").status_code == 200


def test_metrics_are_one_page_that_is_read(port):
    with metrics_page(port, figures):
        assert get(port, path="/").status_code == 404
        assert get(port, path="/metrics/../secret").status_code == 404
        assert get(port, method="POST").status_code == 405


def test_metrics_are_on_the_loopback_alone(port):
    with metrics_page(port, figures):
        with socket.socket() as probe, pytest.raises(OSError, match="in use"):
            probe.bind(("127.0.0.1", port))
        with socket.socket() as other:
            other.bind(("127.0.0.2", port))


def test_metrics_outlive_a_look_that_fails_and_a_caller_that_says_nothing(port):
    state = {"well": False}

    def sometimes():
        if not state["well"]:
            raise ValueError("private")
        yield from figures()

    with metrics_page(port, sometimes), socket.create_connection(("127.0.0.1", port)):
        failed = get(port)
        assert (failed.status_code, failed.text) == (503, "")
        state["well"] = True
        assert get(port).status_code == 200


def test_metrics_say_nothing_of_callers_that_say_nothing_or_hang_up(port, monkeypatch, capfd):
    monkeypatch.setattr(metrics_page_module._Silent, "timeout", 0.05)
    with metrics_page(port, figures):
        with socket.create_connection(("127.0.0.1", port)) as silent:
            assert silent.recv(1) == b""
        with socket.create_connection(("127.0.0.1", port)) as rude:
            rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert get(port).status_code == 200
    assert capfd.readouterr() == ("", "")


def test_metrics_say_which_port_is_wrong_or_taken(port):
    for wrong in (0, -1, 65536):
        with (
            pytest.raises(InvalidSetting, match=f"--metrics-port={wrong} must be from 1 to 65535"),
            metrics_page(wrong, figures),
        ):
            pass
    with (
        metrics_page(port, figures),
        pytest.raises(InvalidSetting, match=f"--metrics-port={port} cannot be listened on"),
        metrics_page(port, figures),
    ):
        pass


def test_metrics_are_off_unless_asked_for():
    with metrics_page(None, figures):
        pass
