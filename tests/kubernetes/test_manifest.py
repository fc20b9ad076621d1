"""What `ssl-ray cluster manifest` makes of its options: always valid, and what the options say."""

import math
import shlex
from importlib.metadata import version
from typing import Any

import pytest
import yaml

from ssl_ray.kubernetes.check import mistakes
from tests.kubernetes.command import manifest, printed

MINIMAL = "moco --image r/ssl-ray:1 --storage s3://b/runs"


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    return lambda options: manifest(options, monkeypatch, capsys)


def groups(made: dict[str, Any]) -> dict[str, Any]:
    spec = made["spec"].get("rayClusterSpec", made["spec"])
    return {group["groupName"]: group for group in spec["workerGroupSpecs"]}


def pod(group: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = group["template"]["spec"]
    return found


def counts(group: dict[str, Any]) -> tuple[int, int, int]:
    return group["minReplicas"], group["replicas"], group["maxReplicas"]


@pytest.mark.parametrize("kind", ["", "--kind=cluster"])
@pytest.mark.parametrize("workers", ["1", "16", "2..16"])
@pytest.mark.parametrize(
    "options",
    [
        "",
        "--gpus-per-worker=0 --cpus-per-worker=4",
        "--gpus-per-worker=0.5",
        "--gpus-per-pod=8",
        "--data-pods=0",
        "--data-cpus=1 --data-pods=1",
        "--images-per-second=4000 --images-per-core=300",
        "--secret=s --service-account=a --namespace=n --mlflow=http://mlflow:5000 --env NCCL_DEBUG=WARN",
        "--claim=shared:/mnt/shared",
        "--spot=cloud.google.com/gke-spot=true --gpu-node=gpu=h100 --gpu-toleration=dear=yes:NoExecute --grace=25",
    ],
)
def test_whatever_is_chosen_is_valid(make: Any, kind: str, workers: str, options: str) -> None:
    made = make(f"{MINIMAL} --workers {workers} {kind} {options}")
    assert mistakes(made) == []
    assert made["kind"] == ("RayCluster" if kind else "RayJob")


@pytest.mark.parametrize("options", ["", "--gpus-per-pod=8", "--kind=cluster"])
def test_a_queue_of_kueue(make: Any, options: str) -> None:
    made = make(f"{MINIMAL} --workers 16 --queue team {options}")
    assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    assert all(low == now == high for low, now, high in map(counts, groups(made).values()))
    assert "enableInTreeAutoscaling" not in str(made)


def test_the_command_of_a_job(make: Any) -> None:
    spec = make(f"{MINIMAL} --workers 2..16 --name run-7 --retries 5 -- --data s3://b/train/ --epochs=3")[
        "spec"
    ]
    assert shlex.split(spec["entrypoint"]) == [
        *("ssl-ray", "pretrain", "moco", "--workers", "2..16"),
        *("--cpus-per-worker", "1", "--gpus-per-worker", "1"),
        *("--storage", "s3://b/runs", "--name", "run-7"),
        *("--data", "s3://b/train/", "--epochs=3"),
    ]
    assert (spec["backoffLimit"], spec["shutdownAfterJobFinishes"]) == (5, True)
    assert spec["rayClusterSpec"]["rayVersion"] == version("ray")
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_environment_and_secrets(make: Any) -> None:
    options = f"{MINIMAL} --mlflow http://mlflow:5000 --env TOKENIZERS_PARALLELISM=no --secret keys"
    job, cluster = make(options), make(f"{options} --kind cluster")
    said = {
        "RAY_JOB_STOP_WAIT_TIME_S": "120",
        "MLFLOW_TRACKING_URI": "http://mlflow:5000",
        "TOKENIZERS_PARALLELISM": "no",
    }
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"]) == {"env_vars": said}
    for made, inside in ((job, {}), (cluster, {"SSL_RAY_STORAGE": "s3://b/runs"} | said)):
        spec = made["spec"].get("rayClusterSpec", made["spec"])
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            (container,) = pod(group)["containers"]
            assert container["envFrom"] == [{"secretRef": {"name": "keys"}}]
            assert {e["name"]: e["value"] for e in container.get("env", [])} == inside


def test_nothing_runs_on_the_head_or_as_root(make: Any) -> None:
    made = make(f"{MINIMAL} --workers 4 --grace 33")
    spec = made["spec"]["rayClusterSpec"]
    assert spec["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert pod(group)["securityContext"]["runAsNonRoot"] is True
        assert pod(group)["restartPolicy"] == "Never"
        assert pod(group)["terminationGracePeriodSeconds"] == 33
        (container,) = pod(group)["containers"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        memory = container["resources"]["limits"]["memory"]
        assert memory == container["resources"]["requests"]["memory"]
        (ram,) = [v["emptyDir"] for v in pod(group)["volumes"] if v["name"] == "ram"]
        assert ram == {"medium": "Memory", "sizeLimit": f"{math.ceil(int(memory[:-2]) / 2)}Gi"}
        assert {"name": "ram", "mountPath": "/dev/shm"} in container["volumeMounts"]


@pytest.mark.parametrize(
    ("options", "train", "gpus", "data"),
    [
        # 16 x 1,000 images/s / 512 x 1.25 = 39.06: 40 CPUs, in pods of at most 16.
        ("--workers 16", (16, 16, 16), 1, ((3, 3, 3), 14)),
        ("--workers 16 --gpus-per-pod 8", (2, 2, 2), 8, ((3, 3, 3), 14)),
        ("--workers 2..16 --gpus-per-pod 8", (1, 1, 2), 8, ((1, 1, 3), 14)),
        ("--workers 2..16", (2, 2, 16), 1, ((1, 1, 3), 14)),
        ("--workers 4 --gpus-per-worker 0.5 --gpus-per-pod 1", (2, 2, 2), 1, ((1, 1, 1), 10)),
        ("--workers 4 --gpus-per-worker 2 --gpus-per-pod 4", (2, 2, 2), 4, ((1, 1, 1), 10)),
        ("--workers 9 --gpus-per-pod 4 --data-cpus 7 --data-pods 2", (3, 3, 3), 4, ((2, 2, 2), 4)),
        ("--workers 2 --gpus-per-worker 0 --data-cpus 1", (2, 2, 2), None, ((1, 1, 1), 1)),
        ("--workers 8 --images-per-second 2048 --images-per-core 512", (8, 8, 8), 1, ((3, 3, 3), 14)),
    ],
)
def test_sizes(make: Any, options: str, train: Any, gpus: int | None, data: Any) -> None:
    found = groups(make(f"{MINIMAL} {options}"))
    assert counts(found["train"]) == train
    assert pod(found["train"])["containers"][0]["resources"]["limits"].get("nvidia.com/gpu") == gpus
    cpus = pod(found["data"])["containers"][0]["resources"]["requests"]["cpu"]
    assert (counts(found["data"]), int(cpus)) == data


def test_views_made_in_the_training_pods(make: Any) -> None:
    found = groups(make(f"{MINIMAL} --workers 16 --gpus-per-pod 8 --cpus-per-worker 2 --data-pods 0"))
    assert found.keys() == {"train"}
    # 8 workers of 2 CPUs, and half of 40 CPUs for the views.
    assert pod(found["train"])["containers"][0]["resources"]["requests"]["cpu"] == "36"


def test_only_what_may_vary_is_scaled(make: Any) -> None:
    fixed, elastic = (make(f"{MINIMAL} --workers {w}")["spec"]["rayClusterSpec"] for w in ("16", "2..16"))
    assert "enableInTreeAutoscaling" not in fixed
    assert elastic["enableInTreeAutoscaling"] is True
    assert elastic["autoscalerOptions"]["version"] == "v2"


def test_where_pods_go(make: Any) -> None:
    made = make(f"{MINIMAL} --spot spot=true --gpu-node gpu=h100 --gpu-toleration dear=yes:NoExecute")
    assert {"nodeSelector", "tolerations"}.isdisjoint(pod(made["spec"]["rayClusterSpec"]["headGroupSpec"]))
    train, data = (pod(group) for group in groups(made).values())
    spot = {"key": "spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
    assert train["nodeSelector"] == {"gpu": "h100", "spot": "true"}
    assert train["tolerations"] == [
        {"key": "dear", "operator": "Equal", "value": "yes", "effect": "NoExecute"},
        spot,
    ]
    assert (data["nodeSelector"], data["tolerations"]) == ({"spot": "true"}, [spot])
    (bare,) = pod(groups(make(MINIMAL))["train"])["tolerations"]
    assert bare == {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}


def test_a_shared_volume(make: Any) -> None:
    made = make("mae --image x --claim nfs:/mnt/nfs --storage /mnt/nfs/runs")
    spec = made["spec"]["rayClusterSpec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert {"name": "shared", "persistentVolumeClaim": {"claimName": "nfs"}} in pod(group)["volumes"]
        assert {"name": "shared", "mountPath": "/mnt/nfs"} in pod(group)["containers"][0]["volumeMounts"]


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        ("moco_v3", "moco-v3"),
        ("moco:PAPER_V1", "moco"),
        ("recipes/My_own.py", "my-own"),
        ("best.json", "best"),
    ],
)
def test_the_name_is_the_recipes(make: Any, recipe: str, name: str) -> None:
    made = make(f"{recipe} --image x --storage s3://b/r")
    assert made["metadata"]["name"] == name
    assert f"--name {name}" in made["spec"]["entrypoint"]


def test_it_says_how_it_was_made(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command = f"ssl-ray cluster manifest {MINIMAL} --env 'A=b c'"
    text = printed(command, monkeypatch, capsys)
    assert text.splitlines()[0] == f"# {command}"
    assert printed(text.splitlines()[0].removeprefix("# "), monkeypatch, capsys) == text
