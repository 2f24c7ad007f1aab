"""A Ray cluster of two nodes on this machine: ``python ray_cluster.py``; a head without cores, and a node with two.

It prints the head's address. The line ``replace`` on stdin kills the raylet of the node and starts another node;
``groups`` prints the placement groups as JSON; the end of stdin ends the cluster.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray
from ray.cluster_utils import Cluster

SMALL: dict[str, Any] = {"object_store_memory": 80 * 2**20, "include_dashboard": False}


def groups(address: str) -> list[dict[str, Any]]:
    """Return the cluster's placement groups."""
    ray.init(address=address, logging_level="ERROR", log_to_driver=False)
    table = ray.util.placement_group_table()
    ray.shutdown()
    return list(table.values())


if __name__ == "__main__":
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **SMALL})
    node = cluster.add_node(num_cpus=2, num_gpus=1, object_store_memory=80 * 2**20)
    cluster.wait_for_nodes()
    print(cluster.address, flush=True)
    for line in sys.stdin:
        if line == "groups\n":
            print(json.dumps(groups(cluster.address)), flush=True)
            continue
        cluster.remove_node(node, allow_graceful=False)
        node = cluster.add_node(num_cpus=2, object_store_memory=80 * 2**20)
        print("replaced", flush=True)
    cluster.shutdown()
