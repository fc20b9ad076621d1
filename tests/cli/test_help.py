import re
import subprocess
import sys
from pathlib import Path

import ssl_ray

PROGRAM = Path(sys.executable).with_name("ssl-ray")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, check=False)


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; sys.argv = ['ssl-ray', '--help']; from ssl_ray.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True
    )
    imported = set(re.findall(r"\| +([\w.]+)$", done.stderr, re.MULTILINE))
    assert "ssl_ray.cli.app" in imported
    heavy = {"torch", "ray", "mlflow", "numpy", "pydantic", "pyarrow", "cv2"}
    assert not imported & heavy
    for verb in ("pretrain", "list", "show", "runs", "version"):
        assert re.search(rf"\b{verb}\b", done.stdout)


def test_version() -> None:
    assert run("version").stdout == run("--version").stdout == f"ssl-ray {ssl_ray.__version__}\n"


def test_unknown_verb() -> None:
    done = run("pretrian")
    assert done.returncode == 2
    assert "pretrian" in done.stderr
