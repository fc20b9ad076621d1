"""How many nodes of which kind a cluster's configuration allows."""

import pytest
from ray.core.generated.autoscaler_pb2 import ClusterConfig

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
