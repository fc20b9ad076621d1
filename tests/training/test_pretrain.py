"""What the driver does around a run; tests/cli/test_pretrain.py runs the command."""

import re
import threading
from pathlib import Path

import pytest

from ssl_ray.console import Console
from ssl_ray.errors import UserError
from ssl_ray.training import cluster
from ssl_ray.training.folder import new_name
from ssl_ray.training.pretrain import Request, pretrain


def test_nothing_else_is_at_work_while_ray_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ray writes environment variables as it starts; a thread that reads one meanwhile, as torch does, may crash."""
    before = set(threading.enumerate())
    seen: list[threading.Thread] = []

    def no_cluster(*_: object, **__: object) -> None:
        seen.extend(set(threading.enumerate()) - before)
        raise UserError("address: none")

    monkeypatch.setattr(cluster, "connect", no_cluster)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="address: none"):
        pretrain(Request(recipe="simclr"), Console("quiet"))
    assert seen == []


def test_names_made_in_one_second_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.strftime", lambda _: "20261130-165923")
    names = {new_name("moco", "digits") for _ in range(20)}
    assert len(names) > 10
    assert all(re.fullmatch(r"moco-digits-20261130-165923-[0-9a-f]{4}", name) for name in names)
