"""What `site-client status` says, as lines for people and as figures for Prometheus.

Every user of the machine can read the page of figures: what is left of the cap depends on who is in the cohorts of all runs
and is on it only where the policy publishes the account.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from mammo_fed.client.folder import SiteFolder
from mammo_fed.client.operations.activity_lines import activity_line
from mammo_fed.client.operations.supervisor import status
from mammo_fed.common.metrics_page import Figure
from mammo_fed.reporting.formatting import duration_text, moment_text

__all__ = ["site_figures", "status_lines"]

MOMENTS: Final = ("busy_since", "time")
PROCESSES: Final = ("supernode", "executor")
# Names of values for people, where another word says more than the program's own.
WORDS: Final = {
    "time": "executor heard",
    "insecure": "without TLS and keys",
    "supernode_deaths": "supernode restarts",
    "executor_deaths": "executor restarts",
    "answered": "messages answered",
    "holds_state": "holds an optimizer between rounds",
}


def status_lines(found: Mapping[str, Any], *, now: float | None = None) -> Iterator[str]:
    """The values of a site's status for people; times are of this machine's own time zone."""
    now = time.time() if now is None else now
    for name, value in found.items():
        if name == "last":
            continue
        words = WORDS.get(name, name.replace("_", " "))
        if name in MOMENTS and isinstance(value, int | float):
            yield f"{words}: {moment_text(value)} ({duration_text(now - value)} ago)"
        elif name == "busy_since":
            yield "busy: no"
        elif isinstance(value, bool):
            yield f"{words}: {'yes' if value else 'no'}"
        else:
            yield f"{words}: {value}"
    if last := found.get("last"):
        yield "last answers:"
        yield from (f"  {activity_line(one)}" for one in last)


def site_figures(folder: SiteFolder) -> Iterator[Figure]:
    """The figures of a site's page, as its folder says them now."""
    found = status(folder)
    yield Figure(name="site_running", text="1 while site-client runs.", values={(): float(found["site_client"] == "running")})
    yield Figure(
        name="process_running",
        text="1 for a process of the site that runs.",
        labels=("process",),
        values={(name,): float(found.get(name) == "running") for name in PROCESSES},
    )
    yield Figure(
        name="process_restarts",
        text="How often a process of the site ended and was started again.",
        labels=("process",),
        values={(name,): float(found.get(f"{name}_deaths", 0)) for name in PROCESSES},
    )
    yield Figure(name="server_answers", text="1 where the server answers.", values={(): float(found["server_answers"])})
    if "answered" in found:
        yield Figure(
            name="messages_answered", text="Messages that the executor has answered.", values={(): float(found["answered"])}
        )
    priced = [one for one in found["last"] if one.get("epsilon") is not None]
    if not priced:
        return
    last = priced[-1]
    at = Figure(name="last_answer_timestamp_seconds", text="When a round was answered last.", values={(): float(last["time"])})
    yield at
    yield Figure(name="round", text="Round of the run: -1 its declaration, 0 the mean.", values={(): float(last["round"])})
    yield Figure(name="rounds", text="Rounds of the run in all.", values={(): float(last.get("rounds", 0))})
    yield Figure(name="run_epsilon", text="Epsilon of this run so far, as its server knows.", values={(): last["epsilon"]})
    if last.get("cap") is not None:
        yield Figure(name="cap_epsilon", text="The most that all runs may cost.", values={(): float(last["cap"])})
    if folder.file.policy.public_account and last.get("left") is not None:
        text = "Epsilon of the largest further full-batch run that fits."
        yield Figure(name="epsilon_left", text=text, values={(): float(last["left"])})
