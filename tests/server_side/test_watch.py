"""Who is there, in which stage a run is and until when: what a server's folder says, in words and in numbers."""

from __future__ import annotations

import json
import re
import time

import pytest

from mammo_fed.errors import RunFailed
from mammo_fed.federation.identity.clocks import read_wrong_clocks
from mammo_fed.reporting.formatting import duration_text, moment_text
from mammo_fed.server.operations import executor_app
from mammo_fed.server.operations.commands.plan import _table, _verdict
from mammo_fed.server.operations.folder import STATE_NAME, FederationFolder, init_folder
from mammo_fed.server.operations.run_folder import ATTENDANCE_NAME, OUTCOME_NAME, PROGRESS_NAME
from mammo_fed.server.operations.watch.attendance import AttendanceWatch, read_attendance
from mammo_fed.server.operations.watch.presence import PRESENCE_NAME, Presence, read_presence
from mammo_fed.server.operations.watch.status import server_status, status_lines

NOW = 1_700_000_000.0


@pytest.fixture
def path(tmp_path):
    return tmp_path / "attendance.json"


def attendance(path, *, stage="train", index=3, attempt=1, deadline=NOW + 125, **sites) -> None:
    found = {"stage": stage, "round": index, "rounds": 12, "attempt": attempt, "begun": NOW - 10, "deadline": deadline}
    path.write_text(json.dumps({**found, "sites": sites}))


def site(state, *, since=NOW, missed=0):
    return {"state": state, "since": since, "missed": missed}


def test_status_presence_keeps_since_when_a_site_is_away_over_a_restart(tmp_path):
    now = [NOW]
    file = tmp_path / "presence.json"
    first = Presence(file, clock=lambda: now[0])
    assert first.note({"a": True, "b": False}) == ["a is connected"]
    now[0] += 60
    (gone,) = first.note({"a": False, "b": False})
    assert gone == f"a is not connected any more (since {moment_text(NOW + 60)})"
    now[0] += 125
    again = Presence(file, clock=lambda: now[0])
    assert again.note({"a": False, "b": False}) == []
    assert read_presence(file)["a"].since == NOW + 60
    assert again.note({"a": True, "b": False}) == ["a is connected, after 2 min 5 s without a connection"]
    # A key that was revoked is not there any more.
    again.note({"b": False})
    assert list(read_presence(file)) == ["b"]


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1}', '{"a": {"connected": true}}', "null"])
def test_status_of_a_damaged_presence_is_of_nobody(tmp_path, content):
    (tmp_path / "presence.json").write_text(content)
    assert read_presence(tmp_path / "presence.json") == {}


def test_console_tells_of_a_stage_once_and_of_sites_that_are_missing_and_come_back(path):
    watch = AttendanceWatch(path, clock=lambda: NOW)
    assert watch.news() == []
    attendance(path, a=site("asked"), b=site("asked"))
    assert watch.news() == [f"round 3 of 12 has begun; 2 min 5 s until its deadline, {moment_text(NOW + 125)}"]
    attendance(path, a=site("answered"), b=site("missing", missed=2))
    assert watch.news() == [f"b is missing since {moment_text(NOW)}, 2 rounds in a row"]
    assert watch.news() == []
    attendance(path, index=4, attempt=2, a=site("asked"), b=site("answered"))
    assert watch.news() == [
        f"round 4 of 12, attempt 2 has begun; 2 min 5 s until its deadline, {moment_text(NOW + 125)}",
        "b answers again",
    ]


def test_console_does_not_tell_of_the_stage_in_which_a_run_broke_off_as_if_it_began_now(path):
    attendance(path, index=2, deadline=NOW - 60, a=site("missing"))
    watch = AttendanceWatch(path, clock=lambda: NOW)
    assert watch.news() == []
    attendance(path, index=2, attempt=2, a=site("asked"))
    assert watch.news() == [f"round 2 of 12, attempt 2 has begun; 2 min 5 s until its deadline, {moment_text(NOW + 125)}"]


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"stage": 1, "round": "x"}', '{"stage": "train", "sites": []}', "[" * 5000]
)
def test_status_of_a_damaged_attendance_is_none(path, content):
    path.write_text(content)
    assert read_attendance(path) is None


def test_status_of_hostile_names_and_figures_cannot_steer_a_terminal(path):
    attendance(path, **{"a\x1b[2J": {"state": "\x1b]0;x", "since": float("inf"), "missed": "many"}}, deadline=True)
    found = read_attendance(path)
    assert found is not None
    ((name, one),) = found.sites.items()
    assert (name, one.state, one.since, one.missed, found.deadline) == ("a?[2J", "?]0;x", None, 0, None)


def test_status_lines_say_times_as_times(path):
    found = {
        "server": "running",
        "address": "fed.example.org:8443",
        "run": "/runs/one",
        "stage": "round 3 of 12",
        "begun": NOW - 10,
        "deadline": NOW + 125,
        "sites": [
            {
                "site": "a",
                "registered": True,
                "connected": True,
                "since": NOW - 3600,
                "state": "answered",
                "state_since": NOW - 5,
            },
            {"site": "b", "registered": True, "connected": False, "since": NOW - 125, "state": "missing", "missed": 2},
            {"site": "c", "registered": True, "connected": None, "reason": "budget"},
            {
                "site": "d",
                "registered": True,
                "connected": True,
                "since": NOW,
                "epsilon": 1.319,
                "rounds": 3,
                "budget_left": 4.779,
            },
        ],
    }
    text = "\n".join(status_lines(found, now=NOW))
    assert f"round 3 of 12; begun {moment_text(NOW - 10)}, 10 s ago; 2 min 5 s until the deadline" in text
    assert f"connected since {moment_text(NOW - 3600)} (1 h 0 min)" in text
    assert f"not connected since {moment_text(NOW - 125)} (2 min 5 s)" in text
    assert "missing, 2 rounds missed" in text
    assert "\n  c                not seen by this server yet; refused (budget)" in text
    assert "3 rounds, epsilon 1.32, left 4.77" in text
    assert not re.search(r"\b1[67]\d{8}\b", text)


def test_status_times_are_of_this_machine():
    assert moment_text(time.time()) == time.strftime("%H:%M:%S", time.localtime(time.time()))
    assert duration_text(float("inf")) == "unknown"


def test_status_of_a_listener_still_names_the_last_run_and_how_far_it_came():
    found = {"server": "listening", "address": "fed.example.org:8443", "run": "/runs/one", "sites": []}
    stopped = {**found, "phase": "rounds", "round": 3, "rounds": 8, "outcome": {"exit_code": 1, "message": "no room"}}
    text = "\n".join(status_lines(stopped, now=NOW))
    assert "last run: /runs/one\n  round 3 of 8 is finished\n  ended with exit code 1: no room" in text
    assert "the declaration is finished" in "\n".join(status_lines({**stopped, "round": -1}, now=NOW))
    assert "no round is finished" in "\n".join(status_lines(found, now=NOW))


def test_status_of_a_server_that_is_stopped_says_nothing_of_connections():
    sites = [{"site": "a", "registered": True, "connected": None}]
    found = {"server": "stopped", "address": "fed.example.org:8443", "sites": sites}
    assert list(status_lines(found, now=NOW))[-1] == "  a                registered"


def test_plan_says_what_would_fit_of_sites_that_refuse_alone():
    answers = {"needed": 3, "sites": [planned("a", True), planned("b", False, 4.77), planned("c", None)]}
    cells = [list(column.cells) for column in _table(answers).columns]
    assert [str(cell) for cell in cells[-1]] == ["", "epsilon 4.77", ""]
    assert "ask for less" in _verdict(answers, 3)
    assert "see to the sites that did not answer" in _verdict(answers, 1)
    assert _verdict(answers, 0).endswith("nothing was charged")


def planned(name, accepts, fits=None):
    return {"site": name, "connected": accepts is not None, "accepts": accepts, "reason": "", "fits": fits}


ODD = [
    b"\xff\xfe",
    b"[]",
    b"3",
    b"[" * 5000,
    b'{"phase": "rounds"}',
    b'{"phase": "rounds", "round": "two", "rounds": {}, "sites": 3}',
    b'{"sites": [3, {}, {"site": "a", "epsilon": "much", "budget_left": [], "rounds": {}}], "exit_code": "x", "message": 4}',
    b'{"run": 3, "a": {"connected": 1, "since": 1e999}, "b": {"connected": 0, "since": 1e18}, "ff": {"ahead_seconds": []}}',
]


@pytest.mark.parametrize("content", ODD)
def test_status_of_any_damaged_file_is_said_in_lines(tmp_path, content, monkeypatch):
    folder = init_folder(tmp_path / "fed", name="trial", hosts=["localhost"], port=8443, bind="127.0.0.1")
    run = folder.runs / "one"
    run.mkdir()
    for name in (PROGRESS_NAME, OUTCOME_NAME, ATTENDANCE_NAME):
        (run / name).write_bytes(content)
    (folder.state / STATE_NAME).write_text(json.dumps({"run": str(run)}))
    (folder.state / PRESENCE_NAME).write_bytes(content)
    monkeypatch.setattr(FederationFolder, "state_of_server", "running")
    lines = list(status_lines(server_status(folder), now=NOW))
    assert lines[0] == "server: running, localhost:8443"
    assert read_wrong_clocks(run / PROGRESS_NAME) == {}
    # A run whose end nobody can read is one that goes on.
    (run / "config.yaml").touch()
    assert folder.unfinished_run() == run


@pytest.mark.parametrize("content", [*ODD[:4], b'{"a": "many"}', b'{"a": null}'])
def test_limits_that_a_disk_damaged_are_written_again_and_never_taken_for_none(tmp_path, content, monkeypatch):
    monkeypatch.setattr(executor_app, "ROSTER_SECONDS", 0.0)
    monkeypatch.setattr(executor_app, "ROSTER_PAUSE_SECONDS", 0.0)
    path = tmp_path / "most-images.json"
    path.write_bytes(content)
    for read in (executor_app.read_most_images, executor_app.read_roster):
        with pytest.raises(RunFailed, match=r"most-images\.json is damaged"):
            read(path)
