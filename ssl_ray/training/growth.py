"""What a cluster with an autoscaler can become: the nodes that run now are not all there can be.

An autoscaler may report its limits to Ray, where Ray Train and Ray Data look for them. Ray's own (of KubeRay, of
`ray up`) reports none. So it is asked by what makes it act: a placement group that finds no room yet. It answers that
no node that it may start would do, or starts some.
"""

import time
from collections.abc import Callable
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

# Of a kind of node whose number has no bound.
MANY = 1000
# An autoscaler looks every 5 seconds. One that starts no node for so long is not waited for any longer.
ANSWER_S = 60.0
POLL_S = 0.5


def most_nodes() -> list[dict[str, float]]:
    """What each node of the connected cluster would have if all were started; none where nobody reports it."""
    from ray._private.state import state

    config = state.get_cluster_config()
    return [] if config is None else nodes_of(config)


def nodes_of(config: Any) -> list[dict[str, float]]:
    """Nodes of a `ClusterConfig`: of each group as many as it may have, within the limits of the whole."""
    left = {name: float(most) for name, most in config.max_resources.items() if most >= 0}
    nodes = []
    for group in config.node_group_configs:
        node = {name: float(amount) for name, amount in group.resources.items()}
        for _ in range(MANY if group.max_count < 0 else group.max_count):
            if not node.get("CPU") or any(amount > left.get(name, amount) for name, amount in node.items()):
                break
            left = {name: amount - node.get(name, 0.0) for name, amount in left.items()}
            nodes.append(node)
    return nodes


def grow(bundles: list[dict[str, float]], on_growth: Callable[[], None]) -> bool:
    """Makes the cluster large enough for the bundles, all at once, and waits until it is. False if it cannot be.

    on_growth: called once when nodes are being started; from there it takes as long as a node takes to start.
    """
    if not _autoscaler().autoscaler_state_version:
        return False
    group = placement_group([{name: need for name, need in bundle.items() if need} for bundle in bundles])
    try:
        deadline, growing = time.monotonic() + ANSWER_S, False
        seen = None
        while not group.wait(POLL_S):
            state = _autoscaler()
            # An autoscaler that has stopped leaves its last words standing.
            speaks = seen != (seen := state.last_seen_cluster_resource_state_version)
            if speaks and (state.pending_instance_requests or state.pending_instances):
                deadline = time.monotonic() + ANSWER_S
                if not growing:
                    growing = True
                    on_growth()
            if _refused(group, state) or time.monotonic() > deadline:
                return False
        return True
    finally:
        remove_placement_group(group)


def _autoscaler() -> Any:
    """What the autoscaler last said; its version is 0 where there is none."""
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

    reply = ray._private.worker.global_worker.gcs_client.get_cluster_status()
    return GetClusterStatusReply.FromString(reply).autoscaling_state


def _refused(group: PlacementGroup, state: Any) -> bool:
    return any(group.id.hex() in request.details for request in state.infeasible_gang_resource_requests)
