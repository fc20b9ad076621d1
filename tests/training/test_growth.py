"""How many nodes of which kind a cluster's configuration allows."""

import pytest
import ray
from ray.core.generated.autoscaler_pb2 import AutoscalingState, ClusterConfig, PendingInstance

from ssl_ray.training import growth
from ssl_ray.training.growth import MANY, nodes_of

SMALL, GPU = {"CPU": 4, "memory": 100}, {"CPU": 8, "GPU": 8}


def config(*groups: tuple[dict[str, int], int], **most: int) -> ClusterConfig:
    made = ClusterConfig(max_resources=most)
    for resources, max_count in groups:
        made.node_group_configs.add(max_count=max_count, resources=resources)
    return made


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (config(), []),
        (config(({"memory": 100}, 3)), []),
        (config((SMALL, 0), (GPU, 1)), [GPU]),
        (config((SMALL, 2), (GPU, 1)), [SMALL, SMALL, GPU]),
        (config((SMALL, -1)), [SMALL] * MANY),
        (config((SMALL, -1), (GPU, 5), CPU=20), [SMALL] * 5),
        (config((GPU, 5), (SMALL, 5), CPU=21), [GPU, GPU, SMALL]),
    ],
)
def test_nodes_of_a_configuration(given: ClusterConfig, expected: list[dict[str, int]]) -> None:
    assert nodes_of(given) == expected


@pytest.mark.slow
def test_an_autoscaler_that_stopped_while_a_node_was_coming_is_not_waited_for(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth, "ANSWER_S", 3.0)
    head = ray._private.worker.global_worker.gcs_client
    said: list[None] = []
    coming = AutoscalingState(
        last_seen_cluster_resource_state_version=1,
        autoscaler_state_version=1,
        pending_instances=[PendingInstance(instance_type_name="worker")],
    )
    none_here = AutoscalingState(last_seen_cluster_resource_state_version=2)
    try:
        head.report_autoscaling_state(coming.SerializeToString())
        assert not growth.grow([{"CPU": 1000}], lambda: said.append(None))
        assert said == [None]
    finally:
        head.report_autoscaling_state(none_here.SerializeToString())
    assert not growth.grow([{"CPU": 1000}], lambda: said.append(None))
    assert said == [None]
