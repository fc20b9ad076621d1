"""The strict check: the shipped schema refuses what KubeRay's would not, or would; each rule of the operator bites."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ssl_ray.errors import UserError
from ssl_ray.kubernetes.check import mistakes, read
from ssl_ray.kubernetes.schema import compact, kuberay

POD = {"spec": {"containers": [{"name": "ray", "image": "x:1"}]}}
CLUSTER: dict[str, Any] = {
    "rayVersion": "2.60.0",
    "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": POD},
    "workerGroupSpecs": [
        {"groupName": "train", "replicas": 1, "minReplicas": 1, "maxReplicas": 2, "template": POD}
    ],
}
JOB: dict[str, Any] = {
    "apiVersion": "ray.io/v1",
    "kind": "RayJob",
    "metadata": {"name": "moco"},
    "spec": {"entrypoint": "true", "shutdownAfterJobFinishes": True, "rayClusterSpec": CLUSTER},
}
LONG_LIVED: dict[str, Any] = {
    "apiVersion": "ray.io/v1",
    "kind": "RayCluster",
    "metadata": {"name": "many"},
    "spec": CLUSTER,
}
AT = "spec.rayClusterSpec"
GROUP = f"{AT}.workerGroupSpecs[0]"
GONE = object()


def changed(manifest: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with another value at `a.b[0].c`; fields on the way are made; GONE takes one away."""
    made = json.loads(json.dumps(manifest))  # nothing is shared, as POD is
    *way, last = [int(p) if p.isdigit() else p for p in path.replace("[", ".").replace("]", "").split(".")]
    at: Any = made
    for part in way:
        at = at[part] if isinstance(at, list) else at.setdefault(part, {})
    if value is GONE:
        del at[last]
    else:
        at[last] = value
    return made


@pytest.mark.parametrize("manifest", [JOB, LONG_LIVED])
def test_a_whole_manifest_is_valid(manifest: dict[str, Any]) -> None:
    assert mistakes(manifest) == []


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        # Unknown fields, from the top to the bottom of a pod.
        ("spce", {}, "spce: unknown field; did you mean 'spec'?"),
        ("metadata.lables", {}, "metadata.lables: unknown field; did you mean 'labels'?"),
        ("spec.entryPoint", "x", "spec.entryPoint: unknown field"),
        ("spec.backofLimit", 1, "did you mean 'backoffLimit'?"),
        (f"{AT}.rayversion", "2", "did you mean 'rayVersion'?"),
        (f"{GROUP}.minReplica", 1, f"{GROUP}.minReplica: unknown field"),
        (f"{GROUP}.template.spec.nodeSelektor", {}, "did you mean 'nodeSelector'?"),
        (
            f"{GROUP}.template.spec.containers[0].resources.limit",
            {},
            f"{GROUP}.template.spec.containers[0].resources.limit: unknown field; did you mean 'limits'?",
        ),
        (
            f"{GROUP}.template.spec.containers[0].envFrom",
            [{"secretRef": {"nam": "s"}}],
            "envFrom[0].secretRef.nam: unknown field; did you mean 'name'?",
        ),
        ("spec.submitterPodTemplate", {"spec": {**POD["spec"], "restart": "Never"}}, "unknown field"),
        # Types and values.
        ("spec.entrypoint", 3, "spec.entrypoint: 3 must be text; write it in quotes"),
        ("spec.backoffLimit", "3", "spec.backoffLimit: '3' is no integer"),
        ("spec.shutdownAfterJobFinishes", "yes", "'yes' is no boolean"),
        (f"{AT}.headGroupSpec.rayStartParams", {"num-cpus": 0}, "0 must be text; write it in quotes"),
        (f"{AT}.workerGroupSpecs", {}, "{} is no array"),
        (f"{AT}.authOptions", {"mode": "tokn"}, "'tokn'; did you mean 'token'?"),
        (f"{AT}.autoscalerOptions", {"version": "v3"}, "'v3'; allowed: v1, v2"),
        (f"{GROUP}.template.spec.containers[0].resources", {"limits": {"memory": "16 GB"}}, "no quantity"),
        (
            f"{GROUP}.template.spec.containers[0].resources",
            {"limits": {"cpu": 1.5}},
            "neither an integer nor text",
        ),
        ("spec.preRunningDeadlineSeconds", 0, "0 is less than the minimum of 1"),
        ("apiVersion", "ray.io/v1alpha1", "must be 'ray.io/v1'"),
        ("kind", "RayJbo", "kind: 'RayJbo'; did you mean 'RayJob'?"),
        (
            f"{GROUP}.template.spec.containers[0].env",
            [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}],
            "env[1]: name: 'A' is there already",
        ),
        # What must be there.
        ("spec", GONE, "'spec' is missing"),
        (f"{AT}.headGroupSpec", GONE, f"{AT}: 'headGroupSpec' is missing"),
        (f"{GROUP}.groupName", GONE, f"{GROUP}: 'groupName' is missing"),
        (f"{GROUP}.maxReplicas", GONE, f"{GROUP}: 'maxReplicas' is missing"),
        (f"{GROUP}.template.spec.containers[0].name", GONE, "containers[0]: 'name' is missing"),
    ],
)
def test_the_schema_refuses(path: str, value: Any, said: str) -> None:
    (line,) = mistakes(changed(JOB, path, value))
    assert said in line


@pytest.mark.parametrize("value", [2, "500m", "16Gi", "1e3", "0.5", ".5", "-1", 0])
def test_quantities(value: Any) -> None:
    assert (
        mistakes(changed(JOB, f"{GROUP}.template.spec.containers[0].resources", {"limits": {"a": value}}))
        == []
    )


def test_all_mistakes_are_said() -> None:
    wrong = changed(changed(JOB, "spec.backofLimit", 1), f"{GROUP}.groupName", GONE)
    wrong = changed(wrong, "metadata.name", "Moco")
    assert [line.partition(":")[0] for line in mistakes(wrong)] == [
        "spec.backofLimit",
        GROUP,
        "metadata.name",
    ]


SIDECAR = changed(JOB, "spec.submissionMode", "SidecarMode")
SELECTED = changed(
    changed(JOB, "spec.rayClusterSpec", GONE), "spec.clusterSelector", {"ray.io/cluster": "many"}
)
KEPT = changed(JOB, "spec.shutdownAfterJobFinishes", GONE)
GROWING = changed(JOB, f"{AT}.enableInTreeAutoscaling", True)
RULE = {"policy": "DeleteCluster", "condition": {"jobStatus": "FAILED", "ttlSeconds": 1}}
WORKERS_GO = {"onSuccess": {"policy": "DeleteWorkers"}, "onFailure": {"policy": "DeleteSelf"}}
HEAD_ENV = f"{AT}.headGroupSpec.template.spec.containers[0].env"
V2 = [{"name": "RAY_enable_autoscaler_v2", "value": "1"}]


@pytest.mark.parametrize("manifest", [SIDECAR, SELECTED, KEPT, GROWING])
def test_what_the_rules_are_tried_on_is_valid(manifest: dict[str, Any]) -> None:
    assert mistakes(manifest) == []


@pytest.mark.parametrize(
    ("manifest", "path", "value", "said"),
    [
        (JOB, "metadata.name", "m" * 48, "metadata.name: 'mmmmm"),
        (LONG_LIVED, "metadata.name", "m" * 54, "has 54 characters; a RayCluster's has at most 53"),
        (JOB, "metadata.name", "1moco", "a letter first"),
        (JOB, "metadata.name", "moco_v3", "use lower-case letters"),
        (JOB, "metadata.name", "moco-", "no '-' at the end"),
        (JOB, "metadata.name", GONE, "metadata.name: missing"),
        (JOB, "spec.ttlSecondsAfterFinished", -1, "negative"),
        (KEPT, "spec.ttlSecondsAfterFinished", 600, "without shutdownAfterJobFinishes: true"),
        (KEPT, "spec.suspend", True, "spec.suspend: needs shutdownAfterJobFinishes: true"),
        (JOB, "spec.activeDeadlineSeconds", 0, "not positive"),
        (JOB, "spec.backoffLimit", -1, "negative"),
        (JOB, "spec.deletionStrategy", {"deletionRules": [RULE]}, "excludes shutdownAfterJobFinishes"),
        (
            KEPT,
            "spec.deletionStrategy",
            {"onSuccess": {"policy": "DeleteSelf"}},
            "both onSuccess and onFailure",
        ),
        (
            KEPT,
            "spec.deletionStrategy",
            {**WORKERS_GO, "deletionRules": [RULE]},
            "has either deletionRules, or",
        ),
        (GROWING, "spec.deletionStrategy", WORKERS_GO, "excludes enableInTreeAutoscaling"),
        (SELECTED, "spec.deletionStrategy", WORKERS_GO, "DeleteWorkers excludes clusterSelector"),
        (
            KEPT,
            "spec.deletionStrategy",
            {"deletionRules": [{"policy": "DeleteSelf", "condition": {}}]},
            "deletionRules[0].condition: needs one of",
        ),
        (JOB, "spec.rayClusterSpec", GONE, "needs rayClusterSpec, or clusterSelector"),
        (SELECTED, "spec.clusterSelector", {"cluster": "many"}, "as ray.io/cluster"),
        (SELECTED, "spec.suspend", True, "spec.suspend: excludes clusterSelector"),
        (SELECTED, "spec.backoffLimit", 1, "spec.backoffLimit: excludes clusterSelector"),
        (
            JOB,
            "spec.submissionMode",
            "HttpMode",
            "allowed: K8sJobMode, HTTPMode, SidecarMode, InteractiveMode",
        ),
        (JOB, "spec.entrypoint", " ", "spec.entrypoint: missing"),
        (
            changed(JOB, "spec.submissionMode", "InteractiveMode"),
            "spec.backoffLimit",
            1,
            "excludes Interactive",
        ),
        (SIDECAR, "spec.submitterPodTemplate", POD, "spec.submitterPodTemplate: excludes SidecarMode"),
        (SIDECAR, "spec.submitterConfig", {"backoffLimit": 1}, "spec.submitterConfig: excludes SidecarMode"),
        (
            SIDECAR,
            "spec.clusterSelector",
            {"ray.io/cluster": "m"},
            "spec.clusterSelector: excludes SidecarMode",
        ),
        (SIDECAR, f"{AT}.headGroupSpec.template.spec.restartPolicy", "Always", "SidecarMode needs Never"),
        (JOB, "spec.runtimeEnvYAML", "env_vars: [", "spec.runtimeEnvYAML: is no YAML"),
        (JOB, "spec.runtimeEnvYAML", "env_vars", "is no mapping but a str"),
        (JOB, "spec.managedBy", "me", "spec.managedBy: 'me'; allowed"),
        (JOB, f"{AT}.authOptions", {"mode": "token", "enableK8sTokenAuth": True}, "is not for a RayJob"),
        (JOB, f"{AT}.headGroupSpec.template.spec.containers", [], "containers: is empty"),
        (JOB, f"{AT}.headGroupSpec.resources", {"CPU": "1"}, "rayStartParams.num-cpus: excludes the group's"),
        (JOB, f"{GROUP}.rayStartParams", {"labels": "a=b"}, "rayStartParams.labels: is not supported"),
        (JOB, f"{GROUP}.labels", {"zone": "a b"}, "zone: 'a b' is no label"),
        (JOB, f"{GROUP}.minReplicas", 3, "3 is more than maxReplicas, 2"),
        (JOB, f"{GROUP}.minReplicas", -1, "negative"),
        (JOB, f"{GROUP}.replicas", 3, "3 is not in minReplicas..maxReplicas, 1..2"),
        (JOB, f"{AT}.workerGroupSpecs", [CLUSTER["workerGroupSpecs"][0]] * 2, "'train' is taken"),
        (
            LONG_LIVED,
            "spec.workerGroupSpecs[0].minReplicas",
            3,
            "spec.workerGroupSpecs[0].minReplicas: 3 is more",
        ),
        (JOB, HEAD_ENV, V2, "needs enableInTreeAutoscaling"),
        (changed(GROWING, f"{AT}.autoscalerOptions", {"version": "v2"}), HEAD_ENV, V2, "use the latter"),
        (GROWING, f"{GROUP}.template.spec.restartPolicy", "Always", "autoscaler v2 needs Never"),
        (
            GROWING,
            f"{AT}.headGroupSpec.template.spec.restartPolicy",
            "OnFailure",
            "autoscaler v2 needs Never",
        ),
        (GROWING, f"{GROUP}.suspend", True, "suspend: excludes enableInTreeAutoscaling"),
        (
            changed(JOB, f"{AT}.authOptions", {"mode": "token"}),
            f"{AT}.rayVersion",
            "2.51.1",
            "needs 2.52.0 or newer",
        ),
        (
            changed(JOB, f"{AT}.authOptions", {"mode": "token"}),
            f"{AT}.rayVersion",
            GONE,
            "needs 2.52.0 or newer",
        ),
        (KEPT, "metadata.labels", {"kueue.x-k8s.io/queue-name": "q"}, "must be true in a queue of Kueue"),
        (GROWING, "metadata.labels", {"kueue.x-k8s.io/queue-name": "q"}, "which admits fixed replicas"),
        (
            changed(SELECTED, "spec.shutdownAfterJobFinishes", True),
            "metadata.labels",
            {"kueue.x-k8s.io/queue-name": "q"},
            "excludes a queue of Kueue",
        ),
    ],
)
def test_the_operator_would_refuse(manifest: dict[str, Any], path: str, value: Any, said: str) -> None:
    found = mistakes(changed(manifest, path, value))
    assert [line for line in found if said in line], found


def test_restarts_are_allowed_with_autoscaler_v1() -> None:
    old = changed(GROWING, f"{AT}.autoscalerOptions", {"version": "v1"})
    assert mistakes(changed(old, f"{GROUP}.template.spec.restartPolicy", "Always")) == []


def test_other_documents_of_a_file_are_left_alone(tmp_path: Path) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "nonsense": 1}
    (tmp_path / "both.yaml").write_text(yaml.safe_dump_all([secret, JOB, LONG_LIVED]))
    assert read(tmp_path / "both.yaml") == [JOB, LONG_LIVED]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\na: 2\n", "'a' is there twice"),
        ("a: [", "no YAML"),
        ("kind: Secret\napiVersion: v1\n", "neither a RayJob nor a RayCluster"),
        (None, "No such file"),
    ],
)
def test_files_that_cannot_be_checked(tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UserError, match=said):
        read(tmp_path / "x.yaml")


def test_a_date_is_text(tmp_path: Path) -> None:
    text = yaml.safe_dump(changed(JOB, "metadata.labels", {"day": "DAY"})).replace("DAY", "2026-01-31")
    (tmp_path / "x.yaml").write_text(text)
    (job,) = read(tmp_path / "x.yaml")
    assert job["metadata"]["labels"] == {"day": "2026-01-31"}
    assert mistakes(job) == []


def test_a_definition_becomes_strict() -> None:
    pod = {"type": "object", "properties": {"spec": {"type": "object", "description": "?", "properties": {}}}}
    group = {"type": "object", "properties": {"template": pod}}
    cluster = {
        "type": "object",
        "properties": {"headGroupSpec": group, "workerGroupSpecs": {"type": "array", "items": group}},
    }
    spec = {"type": "object", "properties": {"rayClusterSpec": cluster, "submitterPodTemplate": pod}}
    versions = [
        {"name": name, "schema": {"openAPIV3Schema": {"properties": {"spec": spec}}}}
        for name in ("v1alpha1", "v1")
    ]
    made = compact("v9", {"spec": {"versions": versions}})
    assert made["x-version"] == "v9"
    assert made["$defs"]["PodTemplate"] == {
        "type": "object",
        "additionalProperties": False,
        "properties": {"spec": {"type": "object", "additionalProperties": False, "properties": {}}},
    }
    head = made["$defs"]["RayClusterSpec"]["properties"]["headGroupSpec"]
    assert head["properties"]["template"] == {"$ref": "#/$defs/PodTemplate"}


def test_every_object_of_the_shipped_schema_is_closed() -> None:
    objects = 0

    def walk(node: Any) -> None:
        nonlocal objects
        if isinstance(node, list):
            for item in node:
                walk(item)
        elif isinstance(node, dict):
            if node.get("type") == "object" and isinstance(node.get("properties"), dict):
                objects += 1
                assert "additionalProperties" in node
            for item in node.values():
                walk(item)

    walk(kuberay())
    assert objects > 200
