"""A folder that holds every odd image: what is whole is trained on, what is not is named once and replaced."""

import json
import os
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from ssl_ray import cli
from tests.data.odd_images import BROKEN, ODD, TOO_LARGE
from tests.runs import TINY, run, summary

pytestmark = pytest.mark.process

SUFFIX = {
    "png": "png",
    "jpeg": "jpg",
    "tiff": "tif",
    "bmp": "bmp",
    "ppm": "ppm",
    "webp": "webp",
}
# A name that would clear the screen and add a line of its own.
HARMFUL = "\x1b[2J\x07\nssl-ray says all is well \u202e.png"


def fill(root: Path) -> set[str]:
    """Two classes of good images, all odd ones, all broken ones. Returns the paths of those, as they are shown."""
    rng = np.random.default_rng(0)
    for i in range(120):
        folder = root / ("cat" if i % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = cv2.GaussianBlur(rng.integers(0, 256, (40, 40, 3), np.uint8), (7, 7), 0)
        assert cv2.imwrite(str(folder / f"{i:03d}.png"), pixels)
    for name, data in ODD.items():
        (root / "cat" / name).write_bytes(data)
    # Not too large for a run, but none holds all that it says; but for a GIF, whose picture may not fill its canvas.
    cut = {kind: data for kind, data in TOO_LARGE.items() if kind != "gif"}
    broken = {f"{kind}.{SUFFIX.get(kind.split()[0], 'png')}": data for kind, data in (cut | BROKEN).items()}
    for name, data in (broken | {HARMFUL: b""}).items():
        (root / "dog" / name).write_bytes(data)
    if os.geteuid():  # root may read everything
        (root / "dog" / "secret.png").write_bytes(ODD["gray.png"])
        (root / "dog" / "secret.png").chmod(0)
        broken["secret.png"] = b""
    (root / "dog" / "me.png").symlink_to("me.png")
    (root / "dog" / "round").symlink_to("..", target_is_directory=True)
    (root / "mouse").mkdir()
    return {str(root / "dog" / name) for name in broken} | {
        f"{root}/dog/\\x1b[2J\\x07\\nssl-ray says all is well \\u202e.png"
    }


def warned(stderr: str) -> list[tuple[str, str]]:
    """(path, reason and what became of it) of each line that names a broken image."""
    lines = [line.removeprefix("warning: ") for line in stderr.splitlines() if "/dog/" in line]
    return [(path, rest) for path, _, rest in (line.partition(": ") for line in lines if ": " in line)]


def verified(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Exit status of `ssl-ray data verify pets ARGUMENTS`, in this process."""
    monkeypatch.setattr(sys, "argv", ["ssl-ray", "data", "verify", "pets", *arguments])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_every_odd_image_in_one_folder(
    tmp_path: Path, two_cpus: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = fill(tmp_path / "pets")
    settings = ["--data=pets", "--holdout=0.2", "--epochs=3", "--set=data.max_broken=0.2"]
    settings += [
        "--set=evaluation.k=5",
        "--set=algorithm.queue_size=32",
        "--set=training.global_batch_size=16",
    ]
    tiny = [
        option
        for option in TINY
        if not option.startswith(("--data", "--set=training.glo", "--set=algorithm.q"))
    ]
    done = run(
        tmp_path, "pretrain", "moco", *tiny, *settings, "--name=odd", "--json", f"--address={two_cpus}"
    )
    result = summary(done)
    assert result["status"] == "finished"

    said = warned(done.stderr)
    assert {path for path, _ in said} == broken
    assert len(said) == len(broken), "each once"
    assert all(rest for _, rest in said)
    replaced = [path for path, rest in said if rest.endswith("; another sample took its place")]
    left_out = [path for path, rest in said if rest.endswith("; left out of the evaluation")]
    assert 0 < len(replaced) <= result["broken_images"] <= len(broken)
    assert sorted(replaced + left_out) == sorted(broken)
    for harmful in ("\x1b", "\x07", "\u202e", "\nssl-ray says all is well"):
        assert harmful not in done.stderr + done.stdout
    assert "Traceback" not in done.stderr

    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert verified(monkeypatch) == 1
    assert {path for path, _ in warned(capsys.readouterr().err)} == broken
    verified(monkeypatch, "--json")
    report = json.loads(capsys.readouterr().out)
    assert len(report["broken"]) == len(broken)
    assert report["checked"] == 120 + len(ODD) + len(broken)
    reasons = {Path(path).name: reason for _, path, reason in report["broken"]}
    assert reasons["chunk longer than its file.png"] == "truncated PNG: no end chunk"
    assert reasons["empty.png"] == "empty"
