"""What a cluster with an autoscaler can become: the nodes that run now are not all there can be."""

from typing import Any

# Of a kind of node whose number has no bound.
MANY = 1000


def most_nodes() -> list[dict[str, float]]:
    """What each node of the connected cluster would have if all were started; none where nobody says so.

    Asks for what Ray Train and Ray Data ask for: the cluster's configuration, which an autoscaler may report to Ray.
    """
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
