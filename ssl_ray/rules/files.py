"""Rules of files: what a recipe reads is found from any folder."""

import os
from typing import Any

from ssl_ray.job import in_copy
from ssl_ray.rules.facts import Fitted


def weights(path: str, value: Any, facts: object) -> Fitted | None:
    """The absolute path of a file that is here; a URI, a name such as torchvision's and what is absolute stay.

    Ray's copy of what was submitted as a job goes with the job: what is relative to that stays relative.
    """
    if not isinstance(value, str) or in_copy() or not os.path.isfile(value):
        return None
    return os.path.abspath(value), f"the file {value} of this folder"
