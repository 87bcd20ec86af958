"""Sites die, are revoked, lose what they keep, announce what never comes: the others go on, and nobody pays for nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass

import pytest
from announcing_site import site_client
from real_federation import SMALL_RUN, SMALL_SITE, RealFederation, real_federation

from mammo_fed.common.supervision import installed_command
from mammo_fed.privacy.ledger.report import RunSummary, show_ledger
from mammo_fed.reporting.record.sections import SitePrivacy

ROUNDS = 14
# Five sites need more patients than the small cohort has.
MANY = "data.images_train=240"
RUN = (
    *SMALL_RUN,
    MANY,
    f"federation.rounds={ROUNDS}",
    "federation.round_min_wait=25",
    "federation.round_timeout=120",
    "federation.resend_after=5",
)
EXECUTOR = "mammo_fed.client.operations.executor"
DEAD, REVOKED, FORGETFUL, SILENT = "site-1", "site-2", "site-3", "site-4"


@dataclass
class Ended:
    """A run of sites with mishaps: its sites in the record, and their ledgers."""

    federation: RealFederation

    def site(self, name: str) -> SitePrivacy:
        return next(site for site in self.federation.record.privacy.sites if site.site == name)

    def ledger(self, name: str) -> RunSummary:
        summary = show_ledger(self.federation.site(name) / "ledger", delta=self.federation.record.privacy.delta)
        (run,) = [run for account in summary.accounts for run in account.runs]
        return run

    @property
    def attendance(self) -> dict[str, dict[str, object]]:
        found: dict[str, dict[str, object]] = json.loads((self.federation.run_folder / "attendance.json").read_text())["sites"]
        return found


def kill(federation: RealFederation, *words: str) -> None:
    for pid in federation.processes(*words):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def ended(cache, tmp_path_factory) -> Ended:
    """A run of five sites, of which one dies, one is revoked, one loses its runs and one announces what it never sends."""
    root = tmp_path_factory.mktemp("attendance")
    with real_federation(root, num_sites=5, cache=cache, data=(*SMALL_SITE, MANY)) as federation:
        for name in federation.sites:
            federation.start_client(name, program=site_client(root) if name == SILENT else ())
        federation.start_server(*RUN, "federation.num_sites=5")
        # The line that comes when the round is over.
        federation.wait_for("private mean  epsilon", seconds=600)
        # All at once, while rounds go on: the dead without a word, the forgetful with a new process.
        federation.clients[DEAD].kill()
        kill(federation, str(federation.site(DEAD)))
        shutil.rmtree(federation.site(FORGETFUL) / "private" / "runs")
        kill(federation, EXECUTOR, str(federation.site(FORGETFUL)))
        subprocess.run([installed_command("flower-server"), "revoke", str(federation.fed), REVOKED], check=True)
        assert federation.wait(900) == 0, federation.tail()
        yield Ended(federation)


pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_attendance_a_dead_site_is_waited_for_in_two_rounds_and_charged_for_no_task_that_it_never_had(ended):
    site = ended.site(DEAD)
    # It may have died with one task in its hands.
    assert len(site.events) <= ended.ledger(DEAD).reserved_rounds + 1
    assert len(site.missed) + len(site.unanswered) >= ROUNDS - 4
    assert len(site.unanswered) <= 1
    assert ended.attendance[DEAD]["state"] == "aside"
    assert "waited for no more" in ended.federation.said()


def test_attendance_a_revoked_site_is_in_no_later_round_and_what_it_gave_stays(ended):
    site = ended.site(REVOKED)
    (since,) = site.revoked
    assert not site.refused
    assert site.rounds >= 1
    assert site.rounds + len(site.unanswered) + len(site.missed) <= since + 1
    assert len(site.events) <= ended.ledger(REVOKED).reserved_rounds + 1
    assert ended.attendance[REVOKED]["state"] == "revoked"


def test_attendance_a_site_that_lost_its_runs_is_declared_to_again_and_pays_for_each_round_once(ended):
    site, ledger = ended.site(FORGETFUL), ended.ledger(FORGETFUL)
    assert not site.refused
    assert ended.attendance[FORGETFUL]["state"] == "answered"
    assert site.rounds > ROUNDS / 2
    assert ledger.reserved_rounds <= len(site.events) <= ledger.reserved_rounds + len(site.unanswered)
    assert ledger.reserved_steps == ledger.reserved_rounds * (ledger.declared_steps // (ROUNDS + 1))


def test_attendance_an_answer_that_is_announced_and_never_sent_keeps_no_other_from_coming(ended):
    """Every round of the others is answered, and the run does not last as long as Flower waits for the parts."""
    silent, honest = ended.site(SILENT), ended.site("site-5")
    # Few or none of them are missing where the machine is busy.
    assert honest.rounds > ROUNDS / 2
    assert silent.rounds == 0
    # It had the tasks, and says that it trained.
    assert silent.unanswered


def test_attendance_the_record_says_who_missed_and_who_was_revoked(ended):
    said = "\n".join(ended.federation.record.privacy.warnings)
    assert f"{DEAD}: it was not there in round" in said
    assert f"{REVOKED}: its registration was revoked" in said
    assert f"{SILENT}: no readable reply came in round" in said
