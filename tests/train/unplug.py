"""An elastic training on two nodes, one of which dies; a process of its own, because Ray reads once whether it uses tokens."""

import json
import sys
import threading
import time
from pathlib import Path

import training
from ray.cluster_utils import Cluster

from workbench.compute.cluster import connect
from workbench.train.scaling import scale


def unplug(nodes: Cluster, node: object, log: Path) -> None:
    "Kill a node once both ranks are at work."
    while sum(path.read_bytes().count(b"\n") for path in log.glob("rows-*")) < 60:
        time.sleep(0.01)
    nodes.remove_node(node, allow_graceful=False)


def main(log: Path) -> None:
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = nodes.add_node(num_cpus=1)
    threading.Thread(target=unplug, args=(nodes, second, log), daemon=True).start()
    with connect(address=nodes.address):
        params = {"log": str(log), "nap_s": 0.05}
        done = scale(training.train, workers=(1, 2), params=params, checkpoint_every=20)
    (log / "incidents").write_text(json.dumps(list(done.incidents)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
