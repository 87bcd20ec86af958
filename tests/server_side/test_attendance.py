"""Who is asked, waited for and charged when sites are away, come back, are revoked, or have lost what they were declared."""

from __future__ import annotations

import errno
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from mammo_fed.client.rounds import site as client_site
from mammo_fed.client.rounds.app import app
from mammo_fed.data.cache import ArrayCache
from mammo_fed.data.run_cohorts import load_pool
from mammo_fed.errors import RunFailed
from mammo_fed.federation.flwr_internals.link.post import unread_tasks
from mammo_fed.federation.protocol.messages import PRIVACY, read_reply
from mammo_fed.federation.protocol.replies import Update
from mammo_fed.privacy.ledger.report import RunSummary, show_ledger
from mammo_fed.reporting.record.record import Record, read_record
from mammo_fed.reporting.record.sections import SitePrivacy
from mammo_fed.server.rounds.attendance import Attendance
from mammo_fed.server.rounds.budget import BudgetView
from mammo_fed.server.rounds.rounds import Deployment
from mammo_fed.server.rounds.run_state import CheckpointFolder
from mammo_fed.server.run import Hooks, run_federation, share_of
from mammo_fed.settings import Settings
from mammo_fed.settings.compose import compose_settings
from mammo_fed.simulations.in_process import run_in_process
from mammo_fed.simulations.launch import site_file

FIRST_NODE = 2
ROSTER = {2: "site-1", 3: "site-2"}
RUN = (
    "privacy.noise_seed=5",
    "federation.rounds=5",
    "federation.num_sites=2",
    "federation.resend_after=60",
    "federation.round_min_wait=50",
    "federation.round_timeout=60",
)


class Away(Grid):
    """A grid of which some nodes are away."""

    def __init__(self, grid: Grid, away: set[int]) -> None:
        self._grid, self._away = grid, away

    def get_node_ids(self) -> Iterable[int]:
        return [node for node in self._grid.get_node_ids() if node not in self._away]

    def set_run(self, run: Any) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        return self._grid.run

    def create_message(self, *arguments: Any, **named: Any) -> Message:
        return self._grid.create_message(*arguments, **named)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        assert not self._away & {message.metadata.dst_node_id for message in messages}
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self._grid.send_and_receive(messages, timeout=timeout)


class CountingApp(ClientApp):
    """The real client app, and which node answered which round with an update."""

    def __init__(self) -> None:
        super().__init__()
        self.answered: list[tuple[int, int]] = []

    def __call__(self, message: Message, context: Context) -> Message:
        reply = app(message, context)
        if not reply.has_error() and PRIVACY in reply.content.config_records:
            told = read_reply(reply.content)
            if isinstance(told, Update):
                self.answered.append((message.metadata.dst_node_id, told.round_index))
        return reply


@dataclass
class Federation:
    """Two real sites in this process, and a server as between machines."""

    folder: Path
    settings: Settings
    away: set[int] = field(default_factory=set)
    roster: dict[int, str] = field(default_factory=lambda: dict(ROSTER))
    client: CountingApp = field(default_factory=CountingApp)

    def start(self, on_round: Callable[[int], None] = lambda _: None) -> None:
        """Run until the end; `on_round` is called after every round."""
        deployment = Deployment(
            checkpoints=CheckpointFolder(self.folder / "checkpoint"),
            roster=lambda: self.roster,
            attendance=self.folder / "attendance.json",
        )
        made = ServerApp()

        def told(index: int, rounds: int, budget: BudgetView) -> None:
            del rounds, budget
            on_round(index)

        @made.main()
        def main(grid: Grid, context: Context) -> None:
            del context
            run_federation(
                Away(grid, self.away),
                self.settings,
                self.folder,
                mode="deploy",
                hooks=Hooks(round=told),
                deployment=deployment,
            )

        config = {"sites-folder": str(self.folder / "sites")}
        run_in_process(made, self.client, num_sites=2, run_config=config, workers=1, wire=True)

    @property
    def record(self) -> Record:
        return read_record(self.folder)

    @property
    def attendance(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "attendance.json").read_text())
        return found

    def site(self, name: str) -> SitePrivacy:
        return next(site for site in self.record.privacy.sites if site.site == name)

    def ledger(self, name: str) -> RunSummary:
        summary = show_ledger(self.folder / "sites" / name / "ledger", delta=self.settings.privacy.delta)
        (run,) = [run for account in summary.accounts for run in account.runs]
        return run

    def asked(self, node: int) -> list[int]:
        return [index for asked, index in self.client.answered if asked == node]


@pytest.fixture
def federation(small, cache, tmp_path) -> Callable[..., Federation]:
    def make(*overrides: str) -> Federation:
        settings = compose_settings([*small, *RUN, *overrides]).settings
        store, folder = ArrayCache(cache), tmp_path / "run"
        pool = load_pool(settings.data, share_of(settings), cache=store)
        (folder / "sites").mkdir(parents=True)
        for index in range(2):
            site_file(settings, pool, index, folder=folder, cache=store).write(folder / "sites" / f"site-{index + 1}.json")
        return Federation(folder, settings)

    return make


def after(index: int, act: Callable[[], Any]) -> Callable[[int], None]:
    return lambda ended: act() if ended == index else None


def test_attendance_a_site_that_is_away_is_sent_nothing_and_charged_nothing_and_is_back_in_the_round_after(federation):
    # It is waited for in two rounds.
    made = federation("federation.round_min_wait=8")
    states: list[str] = []

    def act(index: int) -> None:
        states.append(made.attendance["sites"].get("site-2", {}).get("state", ""))
        if index == 0:
            made.away.add(FIRST_NODE + 1)
        if index == 3:
            made.away.clear()

    made.start(act)
    site = made.site("site-2")
    assert made.asked(FIRST_NODE + 1) == [0, 4, 5]
    assert (site.missed, site.unanswered, site.rounds, site.refused) == ((1, 2, 3), (), 3, False)
    assert len(site.events) == made.ledger("site-2").reserved_rounds == 3
    assert states == ["", "answered", "missing", "aside", "aside", "answered", "answered"]
    assert "site-2: it was not there in rounds 1, 2, 3" in " ".join(made.record.privacy.warnings)


def test_attendance_a_revoked_site_is_asked_waited_for_and_charged_no_more_and_what_it_gave_stays(federation):
    made = federation()
    made.start(after(2, lambda: made.roster.pop(FIRST_NODE + 1)))
    site = made.site("site-2")
    assert made.asked(FIRST_NODE + 1) == [0, 1, 2]
    assert (site.rounds, site.unanswered, site.missed, site.revoked, site.refused) == (3, (), (), (3,), False)
    assert len(site.events) == made.ledger("site-2").reserved_rounds == 3
    assert made.attendance["sites"]["site-2"]["state"] == "revoked"
    assert "site-2: its registration was revoked; it takes no part from round 3 on" in " ".join(made.record.privacy.warnings)


def forget_process() -> None:
    """What a process of a site knows is gone with it."""
    client_site.open_site.cache_clear()


def lose_runs(folder: Path) -> None:
    shutil.rmtree(folder / "runs")


def cut_payload(folder: Path) -> None:
    for path in (folder / "runs").glob("*/payload.npy"):
        path.write_bytes(b"")


def cut_declaration(folder: Path) -> None:
    for path in (folder / "runs").glob("*/declaration.json"):
        path.write_bytes(b"")


@pytest.mark.parametrize("mishap", [lose_runs, cut_payload, cut_declaration])
@pytest.mark.parametrize("secure", ["none", "masks"])
def test_attendance_a_site_that_lost_a_run_is_declared_to_again_and_pays_once_for_each_round(federation, mishap, secure):
    few = ("federation.secure.use=masks", "federation.secure.min_survivors=2")
    made = federation(*(few if secure == "masks" else ()))

    def act() -> None:
        mishap(made.folder / "sites" / "site-2")
        forget_process()

    made.start(after(1, act))
    site, ledger = made.site("site-2"), made.ledger("site-2")
    assert (site.refused, site.missed, site.unanswered, site.rounds) == (False, (2,), (), 5)
    assert made.asked(FIRST_NODE + 1) == [0, 1, 3, 4, 5]
    assert ledger.reserved_rounds == len(site.events) == 5
    assert ledger.reserved_steps == 5 * (ledger.declared_steps // 6)


def test_attendance_a_full_disk_at_a_site_costs_it_a_round_and_nothing_else(federation, monkeypatch):
    made = federation()
    real, full = sqlite3.connect, [False]

    class Full(sqlite3.Connection):
        def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
            if full[0] and sql.lstrip().upper().startswith("INSERT") and "site-2" in self._file():
                error = sqlite3.OperationalError("database or disk is full")
                error.sqlite_errorcode = sqlite3.SQLITE_FULL
                raise error
            return super().execute(sql, *arguments)

        def _file(self) -> str:
            return str(super().execute("PRAGMA database_list").fetchone()[2])

    monkeypatch.setattr(sqlite3, "connect", lambda *arguments, **named: real(*arguments, **{**named, "factory": Full}))
    made.start(lambda index: full.__setitem__(0, index == 1))
    site, ledger = made.site("site-2"), made.ledger("site-2")
    assert (site.refused, site.missed, site.unanswered, site.rounds) == (False, (2,), (), 5)
    assert ledger.reserved_rounds == len(site.events) == 5


TABLE = "CREATE TABLE message_ins (message_id TEXT, delivered_at TEXT NOT NULL DEFAULT '')"


def test_attendance_only_a_task_that_nobody_fetched_is_taken_back(tmp_path):
    database = tmp_path / "link.db"
    with closing(sqlite3.connect(database)) as opened:
        opened.execute(TABLE)
        opened.executemany("INSERT INTO message_ins VALUES (?, ?)", [("unread", ""), ("fetched", "2026-01-01"), ("other", "")])
        opened.commit()
    assert unread_tasks(database, ["unread", "fetched", "never"]) == {"unread"}
    assert unread_tasks(database, ["unread", "fetched"]) == set()
    with closing(sqlite3.connect(database)) as opened:
        assert {row[0] for row in opened.execute("SELECT message_id FROM message_ins")} == {"fetched", "other"}


def test_attendance_without_a_database_nothing_is_taken_back_and_none_is_made(tmp_path):
    assert unread_tasks(tmp_path / "link.db", ["unread"]) == set()
    assert not (tmp_path / "link.db").exists()
    (tmp_path / "link.db").write_bytes(b"no database at all")
    assert unread_tasks(tmp_path / "link.db", ["unread"]) == set()


def attendance(path: Path, **named: Any) -> Attendance:
    return Attendance(path, lambda: ROSTER, rounds=5, **named)


def test_attendance_a_later_process_knows_who_may_have_the_task_of_the_round_in_which_the_first_stopped(tmp_path):
    first = attendance(tmp_path / "attendance.json")
    first.begin(2, attempt=1, seconds=60.0, sites=["site-1", "site-2"])
    first.asking(["site-1"])
    second = attendance(tmp_path / "attendance.json")
    second.resume(2)
    second.begin(2, attempt=1, seconds=60.0, sites=["site-1", "site-2"])
    assert [second.may_have_task(site, 2) for site in ("site-1", "site-2")] == [True, False]
    third = attendance(tmp_path / "attendance.json")
    third.resume(2)
    third.begin(2, attempt=1, seconds=60.0, sites=["site-1", "site-2"])
    assert [third.may_have_task(site, 2) for site in ("site-1", "site-2")] == [True, False]
    third.begin(3, attempt=1, seconds=60.0, sites=["site-1", "site-2"])
    assert not third.may_have_task("site-1", 3)


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b'{"sites": {"site-1": {"state": "well"}}, "round": 2}'])
def test_attendance_where_the_file_is_lost_or_damaged_every_site_may_have_the_task(tmp_path, content):
    path = tmp_path / "attendance.json"
    if content is not None:
        path.write_bytes(content)
    made = attendance(path)
    made.resume(2)
    made.begin(2, attempt=1, seconds=60.0, sites=["site-1"])
    assert made.may_have_task("site-1", 2)


def test_attendance_no_task_is_sent_before_it_is_noted_on_the_disk(tmp_path, monkeypatch):
    made = attendance(tmp_path / "attendance.json", patience=0.0)
    made.begin(2, attempt=1, seconds=60.0, sites=["site-1"])

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    made.answered(["site-1"])
    with pytest.raises(RunFailed, match="free space on the server, then resume"):
        made.asking(["site-1"])
