"""MLflow: the driver opens or resumes a run, rank 0 logs to it, other ranks log to nothing.

Nothing here imports MLflow, torch or Ray until it is used.
"""

from ssl_ray.redact import redact
from ssl_ray.tracking.history import History, Point, find_run, open_history
from ssl_ray.tracking.past import FOLDER, PastRun
from ssl_ray.tracking.records import deliver, why_not
from ssl_ray.tracking.run import StoreAway, TrackedRun, open_run, prepare
from ssl_ray.tracking.store import StoreGone, move_artifacts, require
from ssl_ray.tracking.tags import default_tags
from ssl_ray.tracking.target import TrackingSettings, TrackingTarget, tracking_settings, ui_command
from ssl_ray.tracking.tracker import AnyTracker, NoTracker, Tracker, make_tracker

__all__ = [
    "FOLDER",
    "AnyTracker",
    "History",
    "NoTracker",
    "PastRun",
    "Point",
    "StoreAway",
    "StoreGone",
    "TrackedRun",
    "Tracker",
    "TrackingSettings",
    "TrackingTarget",
    "default_tags",
    "deliver",
    "find_run",
    "make_tracker",
    "move_artifacts",
    "open_history",
    "open_run",
    "prepare",
    "redact",
    "require",
    "tracking_settings",
    "ui_command",
    "why_not",
]
