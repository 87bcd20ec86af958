"""A server's figures for Prometheus: what `flower-server status` says, as numbers. All of it is known in the federation."""

from __future__ import annotations

from collections.abc import Iterator

from mammo_fed.common.metrics_page import Figure
from mammo_fed.server.operations.folder import FederationFolder
from mammo_fed.server.operations.run_folder import ATTENDANCE_NAME
from mammo_fed.server.operations.watch.attendance import read_attendance
from mammo_fed.server.operations.watch.status import server_status

__all__ = ["server_figures"]


def server_figures(folder: FederationFolder) -> Iterator[Figure]:
    """The figures of a server's page, as its folder says them now."""
    found = server_status(folder)
    yield Figure(name="run_active", text="1 while a run is served.", values={(): float(found["server"] == "running")})
    sites = {site["site"]: site for site in found["sites"]}
    label = ("site",)
    yield Figure(
        name="site_registered",
        text="1 for a site whose key is registered.",
        labels=label,
        values={(name,): float(site["registered"]) for name, site in sites.items()},
    )
    yield Figure(
        name="site_connected",
        text="1 for a site whose SuperNode was heard in the last minute.",
        labels=label,
        values={(name,): float(bool(site["connected"])) for name, site in sites.items()},
    )
    yield Figure(
        name="site_rounds_missed",
        text="Rounds in a row that a site did not answer.",
        labels=label,
        values={(name,): float(site["missed"]) for name, site in sites.items() if "missed" in site},
    )
    yield Figure(
        name="site_epsilon",
        text="Epsilon that the present run has cost a site's patients so far.",
        labels=label,
        values={(name,): float(site["epsilon"]) for name, site in sites.items() if "epsilon" in site},
    )
    yield Figure(
        name="site_refused",
        text="1 for a site that takes no part, by the word it gave.",
        labels=("site", "reason"),
        values={(name, str(site["reason"])): 1.0 for name, site in sites.items() if site.get("reason")},
    )
    attendance = read_attendance(folder.state.parent / found["run"] / ATTENDANCE_NAME) if "stage" in found else None
    rounds, index = (found.get("rounds"), found.get("round")) if found["server"] == "running" else (None, None)
    if attendance is not None:
        rounds, index = attendance.rounds, attendance.round_index
        yield Figure(name="round_attempt", text="Attempt of the round, from 1.", values={(): float(attendance.attempt)})
    if rounds is not None and index is not None:
        yield Figure(name="round", text="Round of the run: -1 its declaration, 0 the private mean.", values={(): float(index)})
        yield Figure(name="rounds", text="Rounds of the run in all.", values={(): float(rounds)})
    if found.get("deadline") is not None:
        text = "When the present stage is over for who has not answered, seconds since 1970."
        yield Figure(name="deadline_timestamp_seconds", text=text, values={(): float(found["deadline"])})
