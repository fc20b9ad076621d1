"""What KubeRay's operator refuses of a manifest that its schema allows; left out is what concerns a Redis of one's own.

A rule is a generator: given the parts that it looks at, it yields (path, what is wrong) for each mistake. Fields may be
missing, but what is there has the type that the schema asks for.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml

Object = dict[str, Any]
Mistake = tuple[str, str]

# Operator and users append to a name: the longest that leaves room for it.
LONGEST = {"RayJob": 47, "RayCluster": 53}
MODES = ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode")
QUEUE = "kueue.x-k8s.io/queue-name"
_MANAGERS = ("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue")
_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LABEL = re.compile(r"([A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?)?", re.ASCII)
_LABEL_KEY = re.compile(r"([a-z0-9][a-z0-9.-]{0,252}/)?[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?", re.ASCII)
_RESOURCE_FLAGS = ("num-cpus", "num-gpus", "memory", "resources")
_AUTOSCALER_V2 = "RAY_enable_autoscaler_v2"


def broken(manifest: Object) -> Iterator[Mistake]:
    """Every rule that a RayJob or RayCluster breaks."""
    kind, spec = manifest["kind"], manifest.get("spec")
    yield from _name(kind, manifest.get("metadata", {}))
    if spec is None:
        return
    cluster, at = (
        (spec, "spec") if kind == "RayCluster" else (spec.get("rayClusterSpec"), "spec.rayClusterSpec")
    )
    if kind == "RayJob":
        for of_job in _OF_JOBS:
            yield from of_job(spec)
    if cluster is not None:
        for of_cluster in _OF_CLUSTERS:
            yield from of_cluster(cluster, at)
    if QUEUE in manifest.get("metadata", {}).get("labels", {}):
        yield from _kueue(kind, spec, cluster or {}, at)


def _name(kind: str, metadata: Object) -> Iterator[Mistake]:
    name = metadata.get("name")
    if name is None:
        if "generateName" not in metadata:
            yield "metadata.name", "missing"
        return
    if len(name) > LONGEST[kind]:
        yield "metadata.name", f"{name!r} has {len(name)} characters; a {kind}'s has at most {LONGEST[kind]}"
    if not _DNS_1035.fullmatch(name):
        yield (
            "metadata.name",
            f"{name!r}; use lower-case letters, digits and '-', a letter first, no '-' at the end",
        )


def _ending(spec: Object) -> Iterator[Mistake]:
    """What happens when a job ends."""
    shutdown, ttl = spec.get("shutdownAfterJobFinishes", False), spec.get("ttlSecondsAfterFinished", 0)
    if ttl < 0:
        yield "spec.ttlSecondsAfterFinished", f"{ttl} is negative"
    if ttl > 0 and not shutdown:
        yield "spec.ttlSecondsAfterFinished", "has no effect without shutdownAfterJobFinishes: true"
    if spec.get("suspend") and not shutdown:
        yield "spec.suspend", "needs shutdownAfterJobFinishes: true"
    if spec.get("activeDeadlineSeconds", 1) <= 0:
        yield "spec.activeDeadlineSeconds", f"{spec['activeDeadlineSeconds']} is not positive"
    if spec.get("backoffLimit", 0) < 0:
        yield "spec.backoffLimit", f"{spec['backoffLimit']} is negative"


def _deletion(spec: Object) -> Iterator[Mistake]:
    if (strategy := spec.get("deletionStrategy")) is None:
        return
    at = "spec.deletionStrategy"
    rules = strategy.get("deletionRules", [])
    by_outcome = [name for name in ("onSuccess", "onFailure") if name in strategy]
    if rules and spec.get("shutdownAfterJobFinishes"):
        yield f"{at}.deletionRules", "excludes shutdownAfterJobFinishes"
    if rules and by_outcome:
        yield at, "has either deletionRules, or onSuccess and onFailure"
    if not rules and len(by_outcome) < 2:
        yield at, "needs deletionRules, or both onSuccess and onFailure"
    policies = [(f"{at}.deletionRules[{i}]", rule.get("policy")) for i, rule in enumerate(rules)]
    policies += [(f"{at}.{name}", strategy[name].get("policy")) for name in by_outcome]
    for path, policy in policies:
        if policy == "DeleteWorkers" and (spec.get("rayClusterSpec") or {}).get("enableInTreeAutoscaling"):
            yield path, "DeleteWorkers excludes enableInTreeAutoscaling"
        if policy in ("DeleteWorkers", "DeleteCluster") and spec.get("clusterSelector"):
            yield path, f"{policy} excludes clusterSelector: the cluster is not the job's own"
    for i, rule in enumerate(rules):
        if len({"jobStatus", "jobDeploymentStatus"} & rule.get("condition", {}).keys()) != 1:
            yield f"{at}.deletionRules[{i}].condition", "needs one of jobStatus and jobDeploymentStatus"


def _which_cluster(spec: Object) -> Iterator[Mistake]:
    selector = spec.get("clusterSelector")
    if not selector:
        if "rayClusterSpec" not in spec:
            yield "spec", "needs rayClusterSpec, or clusterSelector for a cluster that exists"
        return
    if not selector.get("ray.io/cluster"):
        yield "spec.clusterSelector", "needs the cluster's name as ray.io/cluster"
    if spec.get("suspend"):
        yield "spec.suspend", "excludes clusterSelector"
    if spec.get("backoffLimit", 0) > 0:
        yield "spec.backoffLimit", "excludes clusterSelector: a retry is a new cluster"


def _submission(spec: Object) -> Iterator[Mistake]:
    mode = spec.get("submissionMode", "K8sJobMode")
    if mode not in MODES:
        yield "spec.submissionMode", f"{mode!r}; allowed: {', '.join(MODES)}"
    if mode != "InteractiveMode" and not spec.get("entrypoint", "").strip():
        yield "spec.entrypoint", f"missing; {mode} has nothing to run"
    if mode == "InteractiveMode" and spec.get("backoffLimit", 0) > 0:
        yield "spec.backoffLimit", "excludes InteractiveMode"
    if mode == "SidecarMode":
        for field in ("submitterPodTemplate", "submitterConfig", "clusterSelector"):
            if spec.get(field):
                yield f"spec.{field}", "excludes SidecarMode"
        head = (spec.get("rayClusterSpec") or {}).get("headGroupSpec", {})
        yield from _never_restarts(head, "spec.rayClusterSpec.headGroupSpec", "SidecarMode")
    try:
        env = yaml.safe_load(spec.get("runtimeEnvYAML", "")) or {}
    except yaml.YAMLError as error:
        yield "spec.runtimeEnvYAML", f"is no YAML: {str(error).splitlines()[0]}"
    else:
        if not isinstance(env, dict):
            yield "spec.runtimeEnvYAML", f"is no mapping but a {type(env).__name__}"
    if spec.get("managedBy", _MANAGERS[0]) not in _MANAGERS:
        yield "spec.managedBy", f"{spec['managedBy']!r}; allowed: {', '.join(_MANAGERS)}"


def _job_auth(spec: Object) -> Iterator[Mistake]:
    if ((spec.get("rayClusterSpec") or {}).get("authOptions") or {}).get("enableK8sTokenAuth"):
        yield "spec.rayClusterSpec.authOptions.enableK8sTokenAuth", "is not for a RayJob; use mode: token"


def _groups(cluster: Object, at: str) -> Iterator[tuple[str, Object]]:
    """(path, group) of the head and the workers."""
    yield f"{at}.headGroupSpec", cluster.get("headGroupSpec", {})
    yield from _workers(cluster, at)


def _workers(cluster: Object, at: str) -> Iterator[tuple[str, Object]]:
    for i, group in enumerate(cluster.get("workerGroupSpecs", [])):
        yield f"{at}.workerGroupSpecs[{i}]", group


def _each_group(cluster: Object, at: str) -> Iterator[Mistake]:
    for path, group in _groups(cluster, at):
        if not _pod(group).get("containers", True):
            yield f"{path}.template.spec.containers", "is empty"
        flags = group.get("rayStartParams") or {}
        if group.get("resources") and (both := [name for name in _RESOURCE_FLAGS if flags.get(name)]):
            yield f"{path}.rayStartParams.{both[0]}", "excludes the group's resources; say them in one place"
        if "labels" in flags:
            yield f"{path}.rayStartParams.labels", "is not supported; write the group's labels"
        for key, value in (group.get("labels") or {}).items():
            if not (_LABEL_KEY.fullmatch(key) and _LABEL.fullmatch(value)):
                yield f"{path}.labels", f"{key}: {value!r} is no label of Kubernetes"


def _counts(cluster: Object, at: str) -> Iterator[Mistake]:
    seen = set()
    for path, group in _workers(cluster, at):
        low, high = group.get("minReplicas", 0), group.get("maxReplicas", 2**31 - 1)
        if low < 0:
            yield f"{path}.minReplicas", f"{low} is negative"
        if low > high:
            yield f"{path}.minReplicas", f"{low} is more than maxReplicas, {high}"
        elif not low <= (replicas := group.get("replicas", low)) <= high:
            yield f"{path}.replicas", f"{replicas} is not in minReplicas..maxReplicas, {low}..{high}"
        if (name := group.get("groupName")) in seen:
            yield f"{path}.groupName", f"{name!r} is taken by a group above"
        seen.add(name)


def _autoscaling(cluster: Object, at: str) -> Iterator[Mistake]:
    head = _pod(cluster.get("headGroupSpec", {}))
    set_by_env = {
        e.get("name"): e.get("value") for c in head.get("containers", [])[:1] for e in c.get("env", [])
    }
    by_hand = set_by_env.get(_AUTOSCALER_V2) in ("1", "true")
    where = f"{at}.headGroupSpec.template.spec.containers[0].env"
    if not cluster.get("enableInTreeAutoscaling"):
        if by_hand:
            yield where, f"{_AUTOSCALER_V2} needs enableInTreeAutoscaling: true"
        return
    version = (cluster.get("autoscalerOptions") or {}).get("version")
    if version is not None and _AUTOSCALER_V2 in set_by_env:
        yield where, f"{_AUTOSCALER_V2} excludes autoscalerOptions.version; use the latter"
    # Since Ray 2.47 it is the default.
    if version == "v2" or by_hand or (version is None and ray_version(cluster) >= (2, 47)):
        for path, group in _groups(cluster, at):
            yield from _never_restarts(group, path, "autoscaler v2")
    for path, group in _workers(cluster, at):
        if group.get("suspend"):
            yield f"{path}.suspend", "excludes enableInTreeAutoscaling"


def _auth(cluster: Object, at: str) -> Iterator[Mistake]:
    if (cluster.get("authOptions") or {}).get("mode") == "token" and ray_version(cluster) < (2, 52):
        yield f"{at}.rayVersion", f"{cluster.get('rayVersion')!r}; token authentication needs 2.52.0 or newer"


def _kueue(kind: str, spec: Object, cluster: Object, at: str) -> Iterator[Mistake]:
    if kind == "RayJob" and not spec.get("shutdownAfterJobFinishes"):
        yield "spec.shutdownAfterJobFinishes", "must be true in a queue of Kueue"
    if kind == "RayJob" and spec.get("clusterSelector"):
        yield "spec.clusterSelector", "excludes a queue of Kueue: the cluster is not the job's own"
    if cluster.get("enableInTreeAutoscaling"):
        yield f"{at}.enableInTreeAutoscaling", "excludes a queue of Kueue, which admits fixed replicas"


def _never_restarts(group: Object, path: str, because: str) -> Iterator[Mistake]:
    if (policy := _pod(group).get("restartPolicy", "Never")) != "Never":
        yield f"{path}.template.spec.restartPolicy", f"{policy!r}; {because} needs Never"


def _pod(group: Object) -> Object:
    spec: Object = group.get("template", {}).get("spec", {})
    return spec


def ray_version(cluster: Object) -> tuple[int, ...]:
    """(2, 60) of "2.60.0"; () where it is not said or not a version."""
    found = re.match(r"v?(\d+)\.(\d+)", cluster.get("rayVersion", ""))
    return tuple(int(part) for part in found.groups()) if found else ()


_OF_JOBS: tuple[Callable[[Object], Iterator[Mistake]], ...] = (
    _ending,
    _deletion,
    _which_cluster,
    _submission,
    _job_auth,
)
_OF_CLUSTERS: tuple[Callable[[Object, str], Iterator[Mistake]], ...] = (
    _each_group,
    _counts,
    _autoscaling,
    _auth,
)
