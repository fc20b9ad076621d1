"""The wheel, installed where there is no checkout: the command works, and the recipes came with it."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.runs import environment

pytestmark = pytest.mark.process

CHECKOUT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has the wheel for its own, and our dependencies from this one's environment."""
    folder = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", f"--outdir={folder}", str(CHECKOUT)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if "No matching distribution found for hatchling" in built.stdout + built.stderr:
        pytest.skip("no package index within reach to fetch the build backend, hatchling, from")
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = folder.glob("*.whl")

    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    own = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder / "venv")}))
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            f"--python={python}",
            "install",
            "-q",
            "--no-deps",
            "--no-index",
            str(wheel),
        ],
        check=True,
        timeout=120,
    )
    # Only the folders: .pth files in them, the checkout's among them, are not read a second time.
    (own / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return python


def installed(python: Path, *arguments: str, timeout: float = 240) -> str:
    """Standard output of the new environment's `ssl-ray ARGUMENTS`, run far from the checkout."""
    done = subprocess.run(
        [python.with_name("ssl-ray"), *arguments],
        cwd=python.parents[2],
        env=environment(python.parents[2]) | {"PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_the_wheel_that_runs(python: Path) -> None:
    code = "import ssl_ray, ssl_ray.experiments as e; print(ssl_ray.__file__, e.folder(), sep='\\n')"
    done = subprocess.run(
        [python, "-c", code], cwd=python.parents[2], capture_output=True, text=True, check=True
    )
    package, experiments = map(Path, done.stdout.split())
    assert package.is_relative_to(python.parents[1])
    assert experiments == package.parent / "_experiments"
    assert {p.name for p in experiments.glob("*.py")} == {
        p.name for p in (CHECKOUT / "experiments").glob("*.py")
    }


def test_it_lists_and_trains(python: Path) -> None:
    names = {line.split()[0] for line in installed(python, "list").splitlines()}
    assert names >= {path.stem for path in (CHECKOUT / "experiments").glob("*.py")}
    tiny = ["--set=evaluation.max_samples=50", "--set=training.global_batch_size=32", "--steps=2", "--name=r"]
    out = installed(python, "pretrain", "mae", *tiny)
    assert "on fashion: " in out, "the embedded images are in the wheel"
    assert (python.parents[2] / "runs" / "r" / "recipe.json").exists()
    installed(python, "report", "r", "--images=20")
    assert "</script>" in (python.parents[2] / "runs" / "r" / "report.html").read_text(), (
        "its template, style, script"
    )
    assert os.fspath(CHECKOUT) not in out


def test_it_checks_manifests(python: Path) -> None:
    file = python.parents[2] / "job.yaml"
    installed(python, "cluster", "manifest", "moco", "--image=x", "--storage=s3://b/r", f"--out={file}")
    assert "RayJob moco: valid" in installed(python, "cluster", "check", str(file)), (
        "KubeRay's schema came along"
    )
