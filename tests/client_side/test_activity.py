"""What a site answered, as lines for its own people: each answer once."""

from __future__ import annotations

import json
from typing import Any

from mammo_fed.client.operations.activity import ActivityLog
from mammo_fed.client.operations.figures import status_lines
from mammo_fed.client.rounds.app import Answered
from mammo_fed.errors import PolicyRefused


def answered(asked: Any, text: str) -> Answered:
    # A refusal before the run is known looks at nothing of the site.
    nobody: Any = None
    return Answered(site=nobody, asked=asked, error=PolicyRefused(text))


def test_activity_notes_a_declaration_that_is_asked_again_and_answered_as_before_once(tmp_path):
    log = ActivityLog(tmp_path / "rounds.jsonl")
    for asked, text in [
        ("declaration", "no"),
        ("declaration", "no"),
        ("declaration", "other"),
        ("plan", "no"),
        ("plan", "no"),
        ("declaration", "no"),
    ]:
        log.note(answered(asked, text))
        log.write()
    lines = [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    found = [(line["asked"], line["text"]) for line in lines]
    assert found == [
        ("declaration", "no"),
        ("declaration", "other"),
        ("plan", "no"),
        ("plan", "no"),
        ("declaration", "no"),
    ]


def test_status_of_a_site_says_yes_and_no():
    found = {
        "site": "a",
        "insecure": False,
        "supernode_deaths": 2,
        "holds_state": True,
        "busy_since": None,
        "server_answers": False,
    }
    assert list(status_lines(found)) == [
        "site: a",
        "without TLS and keys: no",
        "supernode restarts: 2",
        "holds an optimizer between rounds: yes",
        "busy: no",
        "server answers: no",
    ]
