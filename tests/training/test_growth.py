"""How many nodes of which kind a cluster may have, and how long an autoscaler is waited for."""

import subprocess
import sys
from pathlib import Path

import pytest
from ray.core.generated.autoscaler_pb2 import ClusterConfig

from ssl_ray.training.growth import MANY, nodes_of
from tests.runs import environment

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


# In a cluster of its own: Ray takes no report back.
STOPPED = """
import ray
from ray.core.generated.autoscaler_pb2 import AutoscalingState, PendingInstance
from ssl_ray.training import growth

ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
growth.ANSWER_S = 3.0
last = AutoscalingState(
    last_seen_cluster_resource_state_version=1,
    autoscaler_state_version=1,
    pending_instances=[PendingInstance(instance_type_name="worker")],
)
ray._private.worker.global_worker.gcs_client.report_autoscaling_state(last.SerializeToString())
print(growth.grow([{"CPU": 1000}], lambda: print("grows")))
"""


@pytest.mark.process
def test_an_autoscaler_that_stopped_while_a_node_was_coming_is_not_waited_for(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STOPPED], env=environment(tmp_path), capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines() == ["grows", "False"], done.stderr
