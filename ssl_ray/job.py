"""What a process knows of the Ray job that it is the driver of, if it is one (`ray job submit`)."""

import json
import os
from pathlib import Path


def submission_id() -> str | None:
    """The id that `ray job logs` and `ray job stop` take; None outside of a job."""
    try:
        config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
        found = (config.get("metadata") or {}).get("job_submission_id")
    except (ValueError, AttributeError):
        return None
    return str(found) if found else None


def lasting_folder() -> Path:
    """Where relative paths of what is to be kept begin: the working directory, in which a person finds it again.

    The working directory of a job is Ray's copy of what was submitted (`--working-dir`), and is deleted with the job:
    there it is the home directory.
    """
    return Path.home() if in_copy() else Path.cwd()


def in_copy() -> bool:
    """Whether the working directory is Ray's copy of what was submitted as a job."""
    return "working_dir_files" in Path.cwd().parts and submission_id() is not None
