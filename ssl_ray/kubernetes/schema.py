"""KubeRay's schemas of RayJob and RayCluster as one strict JSON Schema, shipped as `kuberay.json.gz` (see NOTICE).

A custom resource definition says what fields there are, but not that there are no others: here an unknown field is an
error. To take another version of KubeRay, give its tag and the definition of RayJob, which holds that of RayCluster
(`helm-chart/kuberay-operator/crds/ray.io_rayjobs.yaml` in its repository):

    python -m ssl_ray.kubernetes.schema v1.7.0-rc.0 ray.io_rayjobs.yaml
"""

import functools
import gzip
import json
import sys
from pathlib import Path
from typing import Any

Schema = dict[str, Any]

FILE = Path(__file__).with_name("kuberay.json.gz")
KINDS = ("RayJob", "RayCluster")
API_VERSION = "ray.io/v1"
# What is said of a field that a check does not need: prose, defaults, and how the API server merges changes.
_NOISE = (
    "description",
    "default",
    "format",
    "x-kubernetes-list-type",
    "x-kubernetes-map-type",
    "x-kubernetes-validations",
)
_STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
# Kubernetes' own part of an object, of which a definition says no more than that it is there. What the API server
# writes is allowed: people save what `kubectl get -o yaml` prints.
_METADATA: Schema = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        **{name: {"type": "string"} for name in ("name", "generateName", "namespace")},
        **dict.fromkeys(("labels", "annotations"), _STRINGS),
        "finalizers": {"type": "array", "items": {"type": "string"}},
        **{
            name: {"type": "array", "items": {"type": "object"}}
            for name in ("ownerReferences", "managedFields")
        },
        **{
            name: {"type": "string"}
            for name in ("uid", "resourceVersion", "creationTimestamp", "deletionTimestamp")
        },
        **{name: {"type": "integer"} for name in ("generation", "deletionGracePeriodSeconds")},
    },
}


@functools.cache
def kuberay() -> Schema:
    """The shipped schema: `x-version` is KubeRay's, `$defs` has the two kinds. Do not change what this returns."""
    loaded: Schema = json.loads(gzip.decompress(FILE.read_bytes()))
    return loaded


def compact(version: str, definition: Schema) -> Schema:
    """The strict schema of both kinds from RayJob's custom resource definition, parsed, at a version of KubeRay."""
    (served,) = (v for v in definition["spec"]["versions"] if v["name"] == API_VERSION.partition("/")[2])
    spec = _strict(served["schema"]["openAPIV3Schema"]["properties"]["spec"])
    cluster, pod = spec["properties"]["rayClusterSpec"], spec["properties"]["submitterPodTemplate"]
    for holder in (
        cluster["properties"]["headGroupSpec"],
        cluster["properties"]["workerGroupSpecs"]["items"],
        spec,
    ):
        for name in ("template", "submitterPodTemplate"):
            if holder["properties"].get(name) == pod:
                holder["properties"][name] = {"$ref": "#/$defs/PodTemplate"}
    spec["properties"]["rayClusterSpec"] = {"$ref": "#/$defs/RayClusterSpec"}
    kinds = {"RayJob": spec, "RayCluster": {"$ref": "#/$defs/RayClusterSpec"}}
    return {
        "x-version": version,
        "$defs": {
            "PodTemplate": pod,
            "RayClusterSpec": cluster,
            **{kind: _object(kind, of) for kind, of in kinds.items()},
        },
    }


def _object(kind: str, spec: Schema) -> Schema:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": {
            "apiVersion": {"const": API_VERSION},
            "kind": {"const": kind},
            "metadata": _METADATA,
            "spec": spec,
            "status": {"type": "object"},
        },
    }


def _strict(schema: Schema) -> Schema:
    """Without the noise; objects that name their fields have no others."""
    kept = {key: value for key, value in schema.items() if key not in _NOISE}
    if "properties" in kept:
        kept["properties"] = {name: _strict(value) for name, value in kept["properties"].items()}
        if not kept.pop("x-kubernetes-preserve-unknown-fields", False):
            kept.setdefault("additionalProperties", False)
    for key in ("items", "additionalProperties"):
        if isinstance(kept.get(key), dict):
            kept[key] = _strict(kept[key])
    return kept


if __name__ == "__main__":
    import yaml

    made = compact(sys.argv[1], yaml.safe_load(Path(sys.argv[2]).read_text()))
    # Without a time stamp the same schema is the same file.
    FILE.write_bytes(gzip.compress(json.dumps(made, separators=(",", ":")).encode(), mtime=0))
    print(f"wrote {FILE}: {FILE.stat().st_size} bytes")
