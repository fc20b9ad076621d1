"""What a person decides of a run on Kubernetes, checked one by one; sizes and manifests follow from it."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ssl_ray.errors import UserError, nearest
from ssl_ray.experiments import names
from ssl_ray.redact import redact
from ssl_ray.workers import Workers

# Options of `pretrain` that the manifest itself writes: given twice, pods and command would disagree.
WRITTEN = (
    "--workers",
    "--storage",
    "--name",
    "--cpus-per-worker",
    "--gpus-per-worker",
    "--address",
    "--resume",
)
_SECRET = re.compile(r"(^|_)(SECRET|PASSWORD|PASSWD|TOKEN|(ACCESS|API|PRIVATE)_?KEY)(_|$)", re.IGNORECASE)
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")


@dataclass(frozen=True)
class Choices:
    """One run (kind "job"), or one cluster for many ("cluster"): the options of `ssl-ray cluster manifest`.

    Raises UserError for what cannot be.

    name: of the object in Kubernetes, and of the run: a job that is tried again continues under it. arguments: further
    ones of `pretrain`. memory_per_worker: GiB. images_per_second: what one worker consumes; images_per_core: what one
    CPU makes views of in a second. grace: seconds that a pod has to end. retries: clusters after the first, each of
    which continues the run. claim: CLAIM:/path, a volume mounted at that path in every pod.
    """

    image: str
    name: str
    workers: Workers
    kind: str = "job"
    storage: str | None = None
    recipe: str = "moco"
    arguments: tuple[str, ...] = ()
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 1.0
    gpus_per_pod: int | None = None
    memory_per_worker: int = 32
    data_cpus: int | None = None
    data_pods: int | None = None
    images_per_second: float = 1000.0
    images_per_core: float = 512.0
    namespace: str | None = None
    queue: str | None = None
    mlflow: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    service_account: str | None = None
    secret: str | None = None
    claim: str | None = None
    gpu_node: str | None = None
    gpu_tolerations: tuple[str, ...] = ("nvidia.com/gpu",)
    spot: str | None = None
    grace: int = 120
    retries: int = 3

    def __post_init__(self) -> None:
        if self.kind not in ("job", "cluster"):
            raise UserError(f"kind: {self.kind!r}; {nearest(self.kind, ('job', 'cluster'))}")
        if not re.fullmatch(r"[\w.:/@-]+", self.image):
            raise UserError(f"image: {self.image!r}; write REPOSITORY/IMAGE:TAG")
        self._check_run()
        self._check_environment()
        if self.queue is not None and self.workers.elastic:
            raise UserError(
                f"workers: {self.workers} with --queue: Kueue admits a job as a whole; give one number, such as "
                f"--workers {self.workers.most}"
            )
        for option, text in (("gpu-node", self.gpu_node), ("spot", self.spot)):
            if text is not None:
                key_value(option, text)
        for text in self.gpu_tolerations:
            toleration("gpu-toleration", text)

    def _check_run(self) -> None:
        if self.kind == "cluster" and self.arguments:
            raise UserError("kind: a cluster runs nothing by itself; leave out what comes after --")
        file = self.recipe.partition(":")[0]
        if not file.endswith((".py", ".json")) and file not in names():
            raise UserError(f"no experiment is called {file!r}; {nearest(file, names())}")
        for argument in self.arguments:
            if (option := argument.partition("=")[0]) in WRITTEN:
                raise UserError(f"{option}: give it to `cluster manifest` itself, before --")
        for argument in (self.recipe, self.storage or "", *self.arguments):
            if argument and shlex.quote(argument) != argument:
                # The submitter's shell takes the quotes off, and Ray's job then hands the bare text to another shell.
                raise UserError(
                    f"{argument!r}: a shell would need quotes around it, which do not survive a job's way to the "
                    "cluster; set one value at a time (algorithm.backbone.depth=50), or write a recipe file"
                )
        self._check_storage()

    def _check_storage(self) -> None:
        if self.claim is not None and not re.fullmatch(r"[a-z0-9.-]+:/.+", self.claim):
            raise UserError(f"claim: {self.claim!r}; write CLAIM:/path, such as shared:/mnt/shared")
        if self.storage is None:
            if self.kind == "job":
                raise UserError("storage: say where the run is kept, such as --storage s3://bucket/runs")
            return
        if redact(self.storage) != self.storage:
            raise UserError(f"storage: {redact(self.storage)} holds credentials; put them into a --secret")
        mount = self.mount
        inside = mount is not None and f"{self.storage}/".startswith(f"{mount.rstrip('/')}/")
        if "://" not in self.storage and not inside:
            raise UserError(
                f"storage: {self.storage!r} would be each pod's own disk; use s3://..., or a path on a volume that "
                "all pods share (--claim CLAIM:/path)"
            )

    def _check_environment(self) -> None:
        if self.mlflow is not None:
            if not self.mlflow.startswith(("http://", "https://", "databricks")):
                raise UserError(
                    f"mlflow: {redact(self.mlflow)!r} is no server that pods reach; write http://HOST:5000"
                )
            if redact(self.mlflow) != self.mlflow:
                raise UserError(
                    f"mlflow: {redact(self.mlflow)} holds credentials; put MLFLOW_TRACKING_USERNAME and "
                    "MLFLOW_TRACKING_PASSWORD into a --secret"
                )
        for name, value in self.env.items():
            if _SECRET.search(name) or redact(value) != value:
                raise UserError(
                    f"env: {name} looks like a credential, which a manifest shows to everybody; put it into a --secret"
                )
            if re.search(r"[$`\\]", value):
                raise UserError(
                    f"env: {name}={value!r}: KubeRay's submitter is a shell; leave out $, ` and \\"
                )

    @property
    def mount(self) -> str | None:
        """Where the claim is mounted."""
        return None if self.claim is None else self.claim.partition(":")[2]


def parse_env(texts: list[str]) -> dict[str, str]:
    """NAME=VALUE, several. Raises UserError."""
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (equals and re.fullmatch(r"[A-Za-z_]\w*", name)):
            raise UserError(f"env: {text!r}; write NAME=VALUE, such as NCCL_DEBUG=WARN")
        pairs[name] = value
    return pairs


def key_value(option: str, text: str) -> tuple[str, str]:
    """A node's label, KEY=VALUE. Raises UserError."""
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise UserError(f"{option}: {text!r}; write the node's label, KEY=VALUE")
    return key, value


def toleration(option: str, text: str) -> dict[str, Any]:
    """Kubernetes' form of KEY[=VALUE][:EFFECT]; the effect is NoSchedule if left out. Raises UserError."""
    rest, _, effect = text.partition(":")
    key, equals, value = rest.partition("=")
    effect = effect or "NoSchedule"
    if not key or effect not in _EFFECTS:
        raise UserError(
            f"{option}: {text!r}; write KEY[=VALUE][:EFFECT], effect one of {', '.join(_EFFECTS)}"
        )
    how = {"operator": "Equal", "value": value} if equals else {"operator": "Exists"}
    return {"key": key, **how, "effect": effect}
