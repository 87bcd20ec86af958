"""What the server of a federation, its sites and its run are doing: plain values for programs, lines for people."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from mammo_fed.common.json_lines import read_object
from mammo_fed.reporting.formatting import budget_text, duration_text, epsilon_text, moment_text, readable
from mammo_fed.server.operations.folder import STATE_NAME, FederationFolder
from mammo_fed.server.operations.run_folder import ATTENDANCE_NAME, OUTCOME_NAME, PROGRESS_NAME
from mammo_fed.server.operations.watch.attendance import Attendance, read_attendance
from mammo_fed.server.operations.watch.presence import PRESENCE_NAME, Seen, read_presence

__all__ = ["server_status", "status_lines"]

# Of the sites in a run's progress.
OF_PROGRESS: Final = ("epsilon", "budget_left", "reason", "rounds", "unanswered", "mismatches")


def server_status(folder: FederationFolder) -> dict[str, Any]:
    """What the server of a folder is doing.

    Returns:
      `server` (never started, stopped, listening or running); of the run that is served, or else of the last one, its folder,
      stage and times (seconds since 1970); `sites`, one entry for each site that is registered or takes part.
    """
    state = folder.state_of_server
    found: dict[str, Any] = {"server": state, "address": folder.about.address}
    about = read_object(folder.state / STATE_NAME)
    if not about and state == "stopped":
        found["server"] = "never started"
    run = Path(str(about["run"])) if about.get("run") else None
    progress: dict[str, Any] = {}
    attendance = None
    if run is not None:
        found |= {"run": str(run), **_of_run(run)}
        sites = found.pop("sites", [])
        progress = {} if state == "listening" else {site["site"]: site for site in sites}
        attendance = read_attendance(run / ATTENDANCE_NAME) if state == "running" else None
        found |= _of_stage(attendance)
    seen = read_presence(folder.state / PRESENCE_NAME) if state in ("running", "listening") else {}
    registered = {site.name for site in folder.registry.read()}
    names = sorted(registered | progress.keys() | (attendance.sites.keys() if attendance else set()))
    found["sites"] = [
        {"site": name, "registered": name in registered, **_connection(seen.get(name)), **_part(name, progress, attendance)}
        for name in names
    ]
    return found


def status_lines(found: Mapping[str, Any], *, now: float | None = None) -> Iterator[str]:
    """The values of `server_status` for people; times are of this machine's own time zone."""
    now = time.time() if now is None else now
    yield f"server: {found['server']}, {found['address']}"
    if "run" in found:
        yield f"{'run' if found['server'] == 'running' else 'last run'}: {found['run']}"
        yield f"  {_stage_line(found, now)}"
    if outcome := found.get("outcome"):
        yield f"  ended with exit code {outcome.get('exit_code')}: {readable(str(outcome.get('message', '')))}".rstrip(": ")
    yield "sites:" if found["sites"] else "sites: none is registered; flower-server register FOLDER NAME.pub"
    for site in found["sites"]:
        yield f"  {readable(str(site['site'])):<16} {'; '.join(_site_words(site, now, found['server']))}"


def _of_run(run: Path) -> dict[str, Any]:
    if (run / "record.json").exists():
        return {"phase": "finished"}
    found = read_object(run / PROGRESS_NAME)
    sites = found.get("sites")
    sites = [site for site in sites if isinstance(site, dict)] if isinstance(sites, list) else []
    found["sites"] = [site for site in sites if isinstance(site.get("site"), str)]
    if outcome := read_object(run / OUTCOME_NAME):
        found["outcome"] = outcome
    return found


def _of_stage(attendance: Attendance | None) -> dict[str, Any]:
    if attendance is None:
        return {}
    return {
        "stage": attendance.name,
        "begun": attendance.begun,
        "deadline": attendance.deadline,
        "seconds_to_deadline": None if attendance.deadline is None else attendance.deadline - time.time(),
    }


def _connection(seen: Seen | None) -> dict[str, Any]:
    if seen is None:
        return {"connected": None}
    return {"connected": seen.connected, "since": seen.since}


def _part(name: str, progress: Mapping[str, Any], attendance: Attendance | None) -> dict[str, Any]:
    """What the site has to do with the run."""
    known = {key: value for key, value in progress.get(name, {}).items() if key in OF_PROGRESS}
    site = attendance.sites.get(name) if attendance else None
    return known if site is None else {**known, "state": site.state, "state_since": site.since, "missed": site.missed}


def _stage_line(found: Mapping[str, Any], now: float) -> str:
    if found.get("phase") == "finished":
        return "finished"
    if "stage" in found:
        words = [str(found["stage"])]
        if found.get("begun") is not None:
            words.append(f"begun {moment_text(found['begun'])}, {duration_text(now - found['begun'])} ago")
        if found.get("deadline") is not None:
            left = found["deadline"] - now
            when = f"the deadline, {moment_text(found['deadline'])}"
            words.append(f"{duration_text(left)} until {when}" if left > 0 else f"{duration_text(-left)} past {when}")
        return "; ".join(words)
    if found.get("phase") == "features":
        return f"features of {found.get('done')} of {found.get('total')} images ({readable(str(found.get('set')))})"
    if found.get("phase") == "rounds" and isinstance(found.get("round"), int) and isinstance(found.get("rounds"), int):
        return f"{_round_name(found['round'], found['rounds'])} is finished"
    return "no stage yet" if found["server"] == "running" else "no round is finished"


def _round_name(index: int, rounds: int) -> str:
    return {-1: "the declaration", 0: "the private mean"}.get(index, f"round {index} of {rounds}")


def _site_words(site: Mapping[str, Any], now: float, server: str) -> Iterator[str]:
    if not site["registered"]:
        yield "not registered"
    if site["connected"] is not None:
        word = "connected" if site["connected"] else "not connected"
        yield f"{word} since {moment_text(site['since'])} ({duration_text(now - site['since'])})"
    elif site["registered"]:
        # Only a server that is there knows who is connected.
        yield "not seen by this server yet" if server in ("running", "listening") else "registered"
    if state := site.get("state"):
        since = site.get("state_since")
        missed = f", {site['missed']} rounds missed" if site.get("missed") else ""
        yield f"{state}{'' if since is None else f' since {moment_text(since)} ({duration_text(now - since)})'}{missed}"
    if reason := site.get("reason"):
        yield f"refused ({readable(str(reason))})"
    elif (cost := _number(site.get("epsilon"))) is not None:
        left = _number(site.get("budget_left"))
        yield f"{readable(str(site.get('rounds', 0)))} rounds, epsilon {epsilon_text(cost)}" + (
            "" if left is None else f", left {budget_text(left)}"
        )


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
