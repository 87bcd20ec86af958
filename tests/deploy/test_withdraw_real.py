"""A patient withdraws at a hospital that takes part in a run over a real network, while its processes run."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from real_federation import SMALL_RUN, real_federation

from mammo_fed.client.folder import SiteFolder
from mammo_fed.common.supervision import installed_command
from mammo_fed.data.cache import ArrayCache
from mammo_fed.data.run_cohorts import patients_of
from mammo_fed.privacy.ledger.report import export_ledger, verify_ledger

ROUNDS = 25


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_patient_withdraws_while_the_sites_processes_run_and_the_record_says_from_which_round(tmp_path, cache):
    with real_federation(tmp_path, num_sites=2, cache=cache) as federation:
        for name in federation.sites:
            federation.start_client(name)
        federation.start_server(*SMALL_RUN, f"federation.rounds={ROUNDS}")
        federation.wait_for(f"round 1/{ROUNDS}", seconds=300)
        site = SiteFolder.open(federation.site("site-1"))
        file = site.file
        patient = min(patients_of(file.data, file.share, index=file.index, cache=ArrayCache(Path(file.cache))))
        names = tmp_path / "names.txt"
        names.write_text(f"patient\n{patient}\n")
        before = datetime.now(UTC).date().isoformat()
        done = subprocess.run(
            [installed_command("site-client"), "withdraw", str(site.path), "--patients", str(names), "--json"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert federation.wait(400) == 0
        record = federation.record
        told = json.loads(done.stdout)
        entries = export_ledger(Path(file.ledger))
        verify_ledger(Path(file.ledger), reported=record.privacy.sites[0].ledger_head)
        assert patient not in "".join(path.read_text(errors="replace") for path in tmp_path.glob("*.out"))
    assert (told["new"], told["in_cohort"], told["in_ledger"], told["unknown_lines"]) == (1, 1, 1, [])
    one, other = record.privacy.sites
    assert before <= one.withdrawn_at <= datetime.now(UTC).date().isoformat()
    (first,) = one.withdrawn_rounds
    assert 1 < first <= ROUNDS
    assert (other.withdrawn_at, other.withdrawn_rounds) == ("", ())
    assert (one.rounds, one.refused, one.mismatches) == (ROUNDS + 1, False, ())
    kinds = [entry.kind for entry in entries]
    at = kinds.index("withdrawn")
    # The round that was under way is trained again under its one reservation, if there was one.
    assert kinds.count("reserved") == kinds.count("settled") == ROUNDS + 1
    assert kinds[:at].count("settled") == first
    assert kinds.count("declared") == 1
    assert f"in force from round {first} on" in record.privacy.withdrawals[0]
    assert patient not in (federation.run_folder / "record.json").read_text()
