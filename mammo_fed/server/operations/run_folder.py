"""What lies in the folder of a run between real machines, by name; apart, so that a supervisor loads no more than that."""

from __future__ import annotations

from typing import Final

__all__ = [
    "ATTENDANCE_NAME",
    "CHECKPOINT_NAME",
    "EVENTS_NAME",
    "LINK_VARIABLE",
    "OUTCOME_NAME",
    "PID_NAME",
    "PLAN_NAME",
    "PROGRESS_NAME",
    "MOST_IMAGES_NAME",
    "ROSTER_NAME",
    "RUN_VARIABLE",
    "SETTINGS_NAME",
]

# The environment names the folder: the bundle that starts a run says nothing of it, for sites receive that too.
RUN_VARIABLE: Final = "MAMMO_FED_RUN_FOLDER"
# The SuperLink's database, in which lie the tasks that no site has fetched.
LINK_VARIABLE: Final = "MAMMO_FED_LINK_DATABASE"
SETTINGS_NAME: Final = "settings.json"
OUTCOME_NAME: Final = "outcome.json"
PROGRESS_NAME: Final = "progress.json"
EVENTS_NAME: Final = "events.jsonl"
PID_NAME: Final = "server-app.pid"
CHECKPOINT_NAME: Final = "checkpoint"
ROSTER_NAME: Final = "roster.json"
ATTENDANCE_NAME: Final = "attendance.json"
# There where sites are only asked whether they would take the run; holds their answers in the end.
PLAN_NAME: Final = "plan.json"
MOST_IMAGES_NAME: Final = "most-images.json"
