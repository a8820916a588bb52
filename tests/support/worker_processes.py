"""A worker with several processes, as its one admin port and the process tree show it."""

import re

from tests.support.process_tree import descendants
from tests.support.service import until

TWO = {"ORDERS_WORKERS": "2", "ORDERS_LOG": "json"}
COMMAND = ("order_service.cli", "worker")


class Processes:
    """The processes of a worker, by number."""

    def __init__(self, worker):
        self.worker = worker

    def pids(self):
        """Return the pid of each process that answers, by its number."""
        metrics = self.worker.admin("/metrics")[1]
        shown = re.findall(r'^process_start_time_seconds{process="(\d+)"} (\S+)', metrics, re.MULTILINE)
        children = descendants(self.worker.process.pid)
        return {
            number: next(pid for pid, arguments in children.items() if is_process(arguments, number))
            for number, _ in shown
        }

    def lanes(self):
        """Return how many lanes each process runs."""
        metrics = self.worker.admin("/metrics")[1]
        measured = re.findall(r'^orders_lanes{process="(\d)",state="running"} (\d+)', metrics, re.MULTILINE)
        return {number: int(count) for number, count in measured}

    def wait_lanes(self, **expected):
        counts = {number.removeprefix("of_"): count for number, count in expected.items()}
        until(lambda: self.worker.is_ready() and self.lanes() == counts, f"the processes run {counts} lanes")
        return self


def is_process(arguments, number):
    """Return whether these are the arguments of a process itself, and not of its watcher."""
    return f"--process={number}" in arguments and not any("watcher.py" in argument for argument in arguments)
