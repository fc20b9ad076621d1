"""Tags that say where a run came from."""

import getpass
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import ssl_ray


def default_tags() -> dict[str, str]:
    """Git commit of the cwd and whether it was clean, versions, host, user.

    Names with the prefix `mlflow.` are those that MLflow's UI shows as columns. What does not apply is left out.
    """
    tags = {
        "mlflow.source.name": "ssl-ray",
        "ssl_ray.version": ssl_ray.__version__,
        "host": platform.node(),
        "python": platform.python_version(),
        **_git(Path.cwd()),
    }
    try:
        tags["torch"] = version("torch")
        tags["mlflow.user"] = getpass.getuser()
    except (PackageNotFoundError, KeyError, OSError):  # a container's user id may have no name
        pass
    return {name: value for name, value in tags.items() if value}


def _git(folder: Path) -> dict[str, str]:
    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=5, check=True
        )
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        dirty = bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):  # no git, no repository, no commit
        return {}
    return {"mlflow.source.git.commit": commit, "git.dirty": str(dirty).lower()}
