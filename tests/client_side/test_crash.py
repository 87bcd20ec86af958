"""A training site that is killed at random moments: its ledger always verifies and never shows less than what was sent."""

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from mammo_fed.privacy.ledger.report import export_ledger, verify_ledger

DRIVER = Path(__file__).with_name("crash_driver.py")
STRESS = os.environ.get("MAMMO_FED_STRESS") == "1"


@pytest.mark.slow
def test_ledger_of_a_training_site_survives_random_kills_and_covers_all_that_was_sent(tmp_path):
    kills = 300 if STRESS else 25
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(tmp_path), str(kills), "7"],
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {"killed": kills, "failed": 0}, done.stderr[-2000:]
    verify_ledger(tmp_path / "ledger")
    reserved, settled_at = {}, set()
    for entry in export_ledger(tmp_path / "ledger"):
        if entry.kind == "reserved":
            key = (entry.details["run"], entry.details["round"])
            assert key not in reserved, "a crash must not charge a round twice"
            reserved[key] = entry.seq
        if entry.kind == "settled":
            settled_at.add(entry.details["reservation"])
    sent = defaultdict(set)
    for line in (tmp_path / "sent").read_text().splitlines():
        parts = line.split()
        if len(parts) == 3 and len(parts[2]) == 64:
            sent[parts[0], int(parts[1])].add(parts[2])
    assert len(sent) > kills / 5, "the site must really have worked between the kills"
    for key, replies in sent.items():
        assert key in reserved, f"round {key} was sent and never charged"
        assert reserved[key] in settled_at, f"round {key} was sent before it was settled"
        assert len(replies) == 1, f"round {key} was answered with {len(replies)} different replies"
