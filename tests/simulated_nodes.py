"""Ray nodes on this machine that can be killed one by one."""

import psutil


class SimulatedNodes:
    """A head that works on nothing, two nodes of so many logical CPUs, and how to find what Ray started on them."""

    def __init__(self, num_cpus: int) -> None:
        from ray.cluster_utils import Cluster

        self.num_cpus = num_cpus
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.add_node()
        self.add_node()

    def add_node(self) -> None:
        self.cluster.add_node(num_cpus=self.num_cpus, object_store_memory=200 * 2**20)

    def processes(self, name: str) -> list[psutil.Process]:
        """What runs on the nodes under a title that holds `name`."""
        found = []
        for node in self.cluster.list_all_nodes():
            (raylet,) = node.all_processes["raylet"]
            for child in psutil.Process(raylet.process.pid).children():
                try:
                    if name in " ".join(child.cmdline()):
                        found.append(child)
                except psutil.NoSuchProcess:
                    continue
        return found

    def kill_node_of(self, process: psutil.Process) -> None:
        for node in self.cluster.list_all_nodes():
            (raylet,) = node.all_processes["raylet"]
            if process.ppid() == raylet.process.pid:
                self.cluster.remove_node(node, allow_graceful=False)
                return
        raise AssertionError(f"{process} is on no node")
