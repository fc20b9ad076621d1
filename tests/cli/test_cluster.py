"""`ssl-ray cluster`: a mistake is one line, a manifest goes where it was asked to, a check says all and its status."""

import sys
from pathlib import Path

import pytest

from ssl_ray import cli
from tests.kubernetes.command import printed

IMAGE = ("--image", "r/ssl-ray:1")
JOB = ("moco", *IMAGE, "--storage", "s3://b/runs")


def ended(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["ssl-ray", "cluster", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("mooc", *IMAGE), "no experiment is called 'mooc'; did you mean 'moco'?"),
        (("moco", *IMAGE), "storage: say where the run is kept"),
        (("moco", *IMAGE, "--storage", "runs"), "would be each pod's own disk"),
        (("moco", *IMAGE, "--storage", "/mnt/x", "--claim", "c:/mnt/y"), "would be each pod's own disk"),
        (("moco", *IMAGE, "--storage", "s3://key:secret@b/r"), "storage: s3://***@b/r holds credentials"),
        (("moco", *IMAGE, "--storage", "s3://b/r?scheme=http&region=x"), "a shell would need quotes"),
        ((*JOB, "--claim", "c"), "write CLAIM:/path"),
        ((*JOB, "--kind", "jbo"), "kind: 'jbo'; did you mean 'job'?"),
        ((*JOB, "--name", "Moco_1"), "metadata.name: 'Moco_1'; use lower-case letters"),
        ((*JOB, "--name", "m" * 48), "a RayJob's has at most 47"),
        ((*JOB, "--image", "a b"), "write REPOSITORY/IMAGE:TAG"),
        ((*JOB, "--workers", "0"), "workers: got '0'; give a number"),
        ((*JOB, "--workers", "16..2"), "or a range such as 2..16"),
        ((*JOB, "--workers", "2-16"), "or a range such as 2..16"),
        ((*JOB, "--workers", "2..16", "--queue", "q"), "Kueue admits a job as a whole"),
        ((*JOB, "--gpus-per-worker", "3", "--gpus-per-pod", "8"), "8 GPUs do not divide"),
        ((*JOB, "--gpus-per-worker", "2", "--gpus-per-pod", "1"), "1 GPUs do not divide"),
        ((*JOB, "--gpus-per-worker", "0", "--gpus-per-pod", "8"), "leave one of them out"),
        ((*JOB, "--mlflow", "mlruns"), "no server that pods reach"),
        ((*JOB, "--mlflow", "http://me:pass@h:5000"), "put MLFLOW_TRACKING_USERNAME"),
        ((*JOB, "--env", "NCCL_DEBUG"), "write NAME=VALUE"),
        ((*JOB, "--env", "AWS_SECRET_ACCESS_KEY=x"), "looks like a credential"),
        ((*JOB, "--env", "HF_TOKEN=x"), "looks like a credential"),
        ((*JOB, "--env", "PROXY=http://me:pass@proxy"), "looks like a credential"),
        ((*JOB, "--env", "A=$HOME"), "leave out $"),
        ((*JOB, "--spot", "spot"), "write the node's label, KEY=VALUE"),
        ((*JOB, "--gpu-toleration", "a=b:Never"), "effect one of NoSchedule"),
        ((*JOB, "--", "--workers=3"), "--workers: give it to `cluster manifest` itself"),
        ((*JOB, "--", "--set", "algorithm.backbone=ResNet(depth=50)"), "a shell would need quotes"),
        ((*IMAGE, "--storage", "s3://b", "--", "--epochs", "3"), "name the recipe before --"),
        ((*JOB, "--kind", "cluster", "--", "--epochs=3"), "a cluster runs nothing by itself"),
        ((*JOB, "--out", "no/such/folder/x.yaml"), "out: no/such/folder/x.yaml: No such file"),
    ],
)
def test_refused(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    said: str,
) -> None:
    assert ended(monkeypatch, "manifest", *arguments) == 2
    out, err = capsys.readouterr()
    (line,) = [line for line in err.splitlines() if not line.startswith("warning: no --mlflow")]
    assert (out, line[:9]) == ("", "ssl-ray: ")
    assert said in line


@pytest.mark.parametrize("mistake", [["--epoch=3"], ["--epochs", "x"], ["more"]])
def test_the_jobs_command_is_tried_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mistake: list[str]
) -> None:
    assert ended(monkeypatch, "manifest", *JOB, "--", *mistake) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Usage: ssl-ray pretrain" in err


def test_written_then_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "job.yaml"
    assert ended(monkeypatch, "manifest", *JOB, "--out", str(file)) == 0
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("warning: no --mlflow")
    assert ended(monkeypatch, "check", str(file)) == 0
    assert capsys.readouterr().out == f"{file}: RayJob moco: valid\n"

    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(
        file.read_text().replace("backoffLimit: 3", "backofLimit: 3").replace("name: moco", "name: M")
    )
    assert ended(monkeypatch, "check", str(file), str(wrong)) == 1
    out, err = capsys.readouterr()
    assert out == f"{file}: RayJob moco: valid\n"
    assert "spec.backofLimit: unknown field; did you mean 'backoffLimit'?" in err
    assert "metadata.name: 'M'" in err
    assert err.count("\n") == 2


def test_with_a_server_for_mlflow_there_is_nothing_to_say(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "http://mlflow:5000" in printed(
        f"ssl-ray cluster manifest {' '.join(JOB)} --mlflow http://mlflow:5000", monkeypatch, capsys
    )
    assert capsys.readouterr().err == ""
