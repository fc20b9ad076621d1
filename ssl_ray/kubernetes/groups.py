"""The groups of a RayCluster: a head that runs no tasks, pods that train, pods that make views."""

import math
from typing import Any

from ssl_ray.kubernetes.choices import Choices, key_value, toleration
from ssl_ray.kubernetes.sizes import HEAD, Pods, sizes

Object = dict[str, Any]

# The user of the image (see experiments/kubernetes/Dockerfile, and of Ray's own images).
_USER, _GROUP = 1000, 100
_PORTS = {"gcs-server": 6379, "dashboard": 8265, "client": 10001}
_RAM = "/dev/shm"


def head_group(choices: Choices, env: dict[str, str]) -> Object:
    """The head: with no CPU of Ray's, so that neither training nor views end up where the cluster is run from."""
    pod = _pod(choices, "ray-head", HEAD, env)
    pod["containers"][0]["ports"] = [{"name": n, "containerPort": p} for n, p in _PORTS.items()]
    return {"rayStartParams": {"num-cpus": "0"}, "template": {"spec": pod}}


def worker_groups(choices: Choices, env: dict[str, str]) -> list[Object]:
    """The group `train`, and `data` where there is one."""
    planned = sizes(choices)
    train = _pod(choices, "ray-worker", planned.train, env)
    if planned.train.gpus:
        _place(train, choices.gpu_node, [toleration("gpu-toleration", t) for t in choices.gpu_tolerations])
    groups = [_group("train", planned.train, train)]
    if planned.data is not None:
        groups.append(_group("data", planned.data, _pod(choices, "ray-worker", planned.data, env)))
    if choices.spot is not None:
        for group in groups:
            _place(group["template"]["spec"], choices.spot, [toleration("spot", choices.spot)])
    return groups


def _group(name: str, pods: Pods, pod: Object) -> Object:
    """A run begins with the fewest; the autoscaler adds the others as they are asked for."""
    return {
        "groupName": name,
        "replicas": pods.count.low,
        "minReplicas": pods.count.low,
        "maxReplicas": pods.count.high,
        "rayStartParams": {},
        "template": {"spec": pod},
    }


def _pod(choices: Choices, container: str, pods: Pods, env: dict[str, str]) -> Object:
    """A pod of one container. Memory is a request and a limit, CPUs are a request: what is idle on the node is used."""
    memory = {"memory": f"{pods.memory}Gi"}
    gpus = {"nvidia.com/gpu": pods.gpus} if pods.gpus else {}
    main: Object = {
        "name": container,
        "image": choices.image,
        "resources": {
            "requests": {"cpu": str(pods.cpus), **memory, **gpus},
            "limits": {**memory, **gpus},
        },
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "ram", "mountPath": _RAM}],
    }
    if env:
        main["env"] = [{"name": name, "value": value} for name, value in env.items()]
    if choices.secret is not None:
        main["envFrom"] = [{"secretRef": {"name": choices.secret}}]
    # Ray's object store (30 % of the memory) and NCCL's buffers; it counts as the pod's memory.
    ram = {"medium": "Memory", "sizeLimit": f"{math.ceil(pods.memory / 2)}Gi"}
    pod: Object = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": choices.grace,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "fsGroup": _GROUP,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [main],
        "volumes": [{"name": "ram", "emptyDir": ram}],
    }
    if choices.claim is not None:
        claim, _, path = choices.claim.partition(":")
        main["volumeMounts"].append({"name": "shared", "mountPath": path})
        pod["volumes"].append({"name": "shared", "persistentVolumeClaim": {"claimName": claim}})
    if choices.service_account is not None:
        pod["serviceAccountName"] = choices.service_account
    return pod


def _place(pod: Object, label: str | None, tolerations: list[Object]) -> None:
    """Adds the label of the nodes that the pod wants, and what it bears of them."""
    if label is not None:
        key, value = key_value("node", label)
        pod.setdefault("nodeSelector", {})[key] = value
    pod["tolerations"] = [*pod.get("tolerations", []), *tolerations]
