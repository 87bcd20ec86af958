"""What happens in a deployed run is appended as events, and the console reads them whatever else lies in the file."""

from __future__ import annotations

import json
import logging
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mammo_fed.client.rounds.app import app as client_app
from mammo_fed.data.cache import ArrayCache
from mammo_fed.data.run_cohorts import load_pool
from mammo_fed.federation.protocol.task import DECLARATION_ROUND
from mammo_fed.server.operations.events import EventLog, EventReader, WarningEvents
from mammo_fed.server.operations.executor_app import app as server_app
from mammo_fed.server.operations.run_folder import EVENTS_NAME, OUTCOME_NAME, RUN_VARIABLE, SETTINGS_NAME
from mammo_fed.server.run import share_of
from mammo_fed.settings.compose import compose_settings
from mammo_fed.simulations.in_process import run_in_process
from mammo_fed.simulations.launch import site_file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / EVENTS_NAME


def lines_of(reader: EventReader) -> list[str]:
    return [line for event in reader.read() for line in event.lines]


def test_events_are_read_once_and_in_order(path):
    log, reader = EventLog(path), EventReader(path)
    assert reader.read() == []
    log.write("started", ["it starts"])
    log.write("round", ["round 1/3", "and more"], round=1, epsilon=float("inf"))
    first, second = reader.read()
    assert (first.kind, first.lines) == ("started", ("it starts",))
    assert (second.lines, second.values["round"]) == (("round 1/3", "and more"), 1)
    assert reader.read() == []
    log.write("started", ["again"])
    assert lines_of(reader) == ["again"]


def test_only_the_owner_can_read_events(path):
    EventLog(path).write("started", ["it starts"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_line_that_was_cut_short_is_skipped_and_the_next_event_is_not(path):
    log, reader = EventLog(path), EventReader(path)
    log.write("started", ["one"])
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 2])
    assert lines_of(reader) == ["one"]
    log.write("started", ["two"])
    assert lines_of(reader) == ["two"]
    assert lines_of(EventReader(path)) == ["one", "two"]


def test_a_line_is_not_read_before_it_is_whole(path):
    EventLog(path).write("started", ["one"])
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    reader = EventReader(path)
    assert reader.read() == []
    path.write_bytes(whole)
    assert lines_of(reader) == ["one"]


@pytest.mark.parametrize(
    "line",
    [
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b'{"time": "", "kind": "other", "lines": [], "values": {}}',
        b'{"kind": [], "lines": 1}',
    ],
)
def test_what_is_no_event_is_skipped(path, line):
    path.write_bytes(line + b"\n")
    EventLog(path).write("started", ["one"])
    assert lines_of(EventReader(path)) == ["one"]


def test_text_can_do_nothing_to_a_terminal(path):
    EventLog(path).write("warning", ["\x1b]0;owned\x07\x1b[2Jred", "a\nb"])
    assert all(line.isprintable() for line in lines_of(EventReader(path)))


def test_a_disk_that_is_away_loses_events_and_stops_nothing(tmp_path):
    path = tmp_path / "away" / EVENTS_NAME
    log = EventLog(path)
    log.write("started", ["lost"])
    path.parent.mkdir()
    log.write("started", ["one"])
    assert lines_of(EventReader(path)) == ["one"]


def test_who_resumes_a_run_shows_what_is_new(path):
    log = EventLog(path)
    log.write("started", ["old"])
    reader = EventReader(path, seen=True)
    log.write("started", ["new"])
    assert lines_of(reader) == ["new"]


def test_events_of_several_threads_do_not_mix(path):
    log = EventLog(path)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda index: log.write("round", ["x" * 2000], round=index), range(100)))
    assert sorted(event.values["round"] for event in EventReader(path).read()) == list(range(100))


def test_warnings_become_events_and_nothing_else_of_the_log_does(path):
    logger, handler = logging.getLogger("mammo_fed.test_events"), WarningEvents(EventLog(path))
    logger.addHandler(handler)
    try:
        logger.warning("site-1 sends %s\nin two lines", "nothing")
        logger.info("a WARNING mammo_fed.run: that is none")
    finally:
        logger.removeHandler(handler)
    (event,) = EventReader(path).read()
    assert event.lines == ("site-1 sends nothing", "in two lines")
    assert event.values == {"logger": "mammo_fed.test_events"}


def test_a_deployed_run_reports_every_round_and_no_line_that_only_looks_like_one(small, cache, tmp_path, monkeypatch):
    settings = compose_settings(
        [*small, "federation.num_sites=2", "federation.rounds=1", "federation.min_nodes=2", "privacy.noise_seed=5"]
    ).settings
    store = ArrayCache(cache)
    pool = load_pool(settings.data, share_of(settings), cache=store)
    (tmp_path / "sites").mkdir()
    for index in range(2):
        site_file(settings, pool, index, folder=tmp_path, cache=store).write(tmp_path / "sites" / f"site-{index + 1}.json")
    (tmp_path / SETTINGS_NAME).write_text(settings.to_json(), encoding="utf-8")
    (tmp_path / "run.log").write_text("2026-01-01 INFO mammo_fed.run: a line of the log\n", encoding="utf-8")
    monkeypatch.setenv(RUN_VARIABLE, str(tmp_path))
    run_in_process(
        server_app, client_app, num_sites=2, run_config={"sites-folder": str(tmp_path / "sites")}, workers=1, wire=False
    )
    assert json.loads((tmp_path / OUTCOME_NAME).read_text(encoding="utf-8")) == {"exit_code": 0, "message": ""}
    events = EventReader(tmp_path / EVENTS_NAME).read()
    rounds = [event for event in events if event.kind == "round"]
    assert events[0].kind == "started"
    assert [event.values["round"] for event in rounds] == [DECLARATION_ROUND, 0, 1]
    assert rounds[0].lines == ("2 of 2 sites take part",)
    assert {site["site"] for site in rounds[-1].values["sites"]} == {"site-1", "site-2"}
    assert "a line of the log" not in [line for event in events for line in event.lines]
