"""What a cluster can serve is known before anything starts. The cluster of the tests has 4 CPUs."""

from pathlib import Path

import pytest
import ray

from ssl_ray.errors import UserError
from ssl_ray.training import cluster
from ssl_ray.training.cluster import Resources, fit_workers

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("workers", "cpus"), [(1, 3.0), (2, 1.0), (3, 1.0), (4, 0.75), (6, 0.5), (12, 0.25)])
def test_workers_leave_a_cpu_for_the_data(ray_cluster: None, workers: int, cpus: float) -> None:
    assert fit_workers(workers, None, None) == Resources(cpus, 0.0)
    assert workers * cpus <= 3


@pytest.mark.parametrize(
    ("workers", "cpus", "gpus", "message"),
    [
        (13, None, None, "use --workers 12 or fewer"),
        (4, 1.0, None, "4 workers x 1 CPUs need 4 and the data one more"),
        (2, None, 1.0, "2 workers x 1 GPUs need 2, the cluster has 4 CPUs and 0 GPUs on 1 node"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(
    ray_cluster: None, workers: int, cpus: float | None, gpus: float | None, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        fit_workers(workers, cpus, gpus)
    assert "\n" not in str(caught.value)


def test_a_token_goes_where_it_is_wanted(
    ray_cluster: None, two_cpus: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A cluster that this process started wants Ray's token; one that asks for none would be lost with it."""
    with_token = ray.get_runtime_context().gcs_address
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    assert not cluster._wants_token(two_cpus)
    assert cluster._wants_token(with_token)
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not cluster._wants_token(two_cpus)
    with pytest.raises(UserError, match="wants a token; put its token into"):
        cluster._wants_token(with_token)
