"""A RayJob or a RayCluster, as Kubernetes takes it, from a person's choices."""

import shlex
from importlib.metadata import version
from typing import Any

import yaml

from ssl_ray.errors import UserError
from ssl_ray.kubernetes.check import mistakes
from ssl_ray.kubernetes.choices import Choices
from ssl_ray.kubernetes.groups import Object, head_group, worker_groups

# `ray job stop` otherwise kills after 3 s: not long enough to write a checkpoint.
STOP_WAIT_S = 120
IDLE_TIMEOUT_S = 300
# How long a finished job's pods stay, for their logs.
TTL_S = 600


def manifest(choices: Choices) -> Object:
    """The object for these choices, checked as `ssl-ray cluster check` would. Raises UserError."""
    made = _job(choices) if choices.kind == "job" else _cluster(choices)
    if found := mistakes(made):
        raise UserError("; ".join(found))
    return made


def to_yaml(made: Object, command: str) -> str:
    """The object as YAML, under the command that made it."""
    return f"# {command}\n{yaml.dump(made, Dumper=_Dumper, sort_keys=False, width=1000)}"


def entrypoint(choices: Choices) -> str:
    """What the job runs: the command that a person would type on the cluster's head."""
    words = ["ssl-ray", "pretrain", choices.recipe, "--workers", str(choices.workers)]
    words += ["--cpus-per-worker", f"{choices.cpus_per_worker:g}"]
    words += ["--gpus-per-worker", f"{choices.gpus_per_worker:g}"]
    words += ["--storage", str(choices.storage), "--name", choices.name]
    return shlex.join([*words, *choices.arguments])


def _job(choices: Choices) -> Object:
    runtime_env = {"env_vars": _environment(choices)}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": _metadata(choices),
        "spec": {
            "entrypoint": entrypoint(choices),
            "submissionMode": "K8sJobMode",
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": TTL_S,
            "backoffLimit": choices.retries,
            "runtimeEnvYAML": yaml.safe_dump(runtime_env, sort_keys=False),
            "rayClusterSpec": _spec(choices, {}),
        },
    }


def _cluster(choices: Choices) -> Object:
    """Without a job to carry it, the environment is that of every container."""
    storage = {} if choices.storage is None else {"SSL_RAY_STORAGE": choices.storage}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": _metadata(choices),
        "spec": _spec(choices, storage | _environment(choices)),
    }


def _metadata(choices: Choices) -> Object:
    labels = {"app.kubernetes.io/name": "ssl-ray", "app.kubernetes.io/instance": choices.name}
    if choices.queue is not None:
        labels["kueue.x-k8s.io/queue-name"] = choices.queue
    namespace = {} if choices.namespace is None else {"namespace": choices.namespace}
    return {"name": choices.name, **namespace, "labels": labels}


def _environment(choices: Choices) -> dict[str, str]:
    mlflow = {} if choices.mlflow is None else {"MLFLOW_TRACKING_URI": choices.mlflow}
    return {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)} | mlflow | dict(choices.env)


def _spec(choices: Choices, env: dict[str, str]) -> Object:
    """The cluster: it grows and shrinks where the number of workers may."""
    autoscaling: Object = {}
    if choices.workers.elastic:
        options = {"version": "v2", "idleTimeoutSeconds": IDLE_TIMEOUT_S}
        autoscaling = {"enableInTreeAutoscaling": True, "autoscalerOptions": options}
    return {
        "rayVersion": version("ray"),
        "authOptions": {"mode": "token"},
        **autoscaling,
        "headGroupSpec": head_group(choices, env),
        "workerGroupSpecs": worker_groups(choices, env),
    }


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Text of several lines as it is, and everything written out where it is used."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> Any:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
