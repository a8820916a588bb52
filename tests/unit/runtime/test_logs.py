"""Logs: what a library repeats is logged once a second, and a stderr that takes nothing blocks no thread."""

import io
import json
import logging
import os
import subprocess
import sys
import threading

from prometheus_client import REGISTRY

from order_service.runtime.logs import COORDINATOR, QUEUED_LINES, CoordinatorFilter, QueuedHandler, RepeatFilter

DEADLINE_S = 20.0


def record(name, sentence, exc_info=None):
    return logging.LogRecord(name, logging.WARNING, "", 0, sentence, ("a",), exc_info)


def test_a_library_says_the_same_sentence_once_in_ten_seconds():
    now = [100.0]
    seldom = RepeatFilter("aiokafka", clock=lambda: now[0])
    assert seldom.filter(record("aiokafka.client", "no node %s"))
    assert not seldom.filter(record("aiokafka.client", "no node %s"))
    assert seldom.filter(record("aiokafka.client", "another"))
    assert seldom.filter(record("order_service.kafka.connection", "no node %s"))
    assert seldom.filter(record("order_service.kafka.connection", "no node %s"))
    asked_for = record("aiokafka.client", "no node %s")
    asked_for.levelno = logging.INFO
    assert seldom.filter(asked_for), "an operator has set this level"
    now[0] += 9
    assert not seldom.filter(record("aiokafka.client", "no node %s"))
    now[0] += 1
    assert seldom.filter(record("aiokafka.client", "no node %s"))


def test_a_broker_that_cannot_be_reached_is_a_warning():
    unreachable = record("aiokafka", 'Unable connect to "%s": %s')
    unreachable.levelno, unreachable.levelname = logging.ERROR, "ERROR"
    assert RepeatFilter("aiokafka").filter(unreachable)
    assert (unreachable.levelno, unreachable.levelname) == (logging.WARNING, "WARNING")


def test_of_the_coordinator_only_what_it_does_not_try_again_is_said():
    grave = CoordinatorFilter()
    assert not grave.filter(record(COORDINATOR, "Group Coordinator Request failed: %s"))
    assert grave.filter(record(COORDINATOR, "User provided listener failed", (ValueError, ValueError("x"), None)))
    assert grave.filter(record(COORDINATOR, "Heartbeat session expired - marking coordinator dead %s"))
    assert grave.filter(record("aiokafka.client", "Group Coordinator Request failed: %s"))


def dropped():
    return REGISTRY.get_sample_value("orders_log_lines_dropped_total")


class Blocked(io.StringIO):
    """A stream that takes a line when it is told to."""

    def __init__(self):
        super().__init__()
        self.taken = []
        self.began, self.go_on = threading.Event(), threading.Event()

    def write(self, text):
        self.began.set()
        assert self.go_on.wait(DEADLINE_S)
        self.taken.append(text)
        return len(text)


def test_lines_that_stderr_does_not_take_are_dropped_and_counted():
    stream = Blocked()
    handler = QueuedHandler(stream, lines_max=3)
    handler.setFormatter(logging.Formatter("%(message)s"))
    before = dropped()
    handler.emit(record("test", "line 0 %s"))
    assert stream.began.wait(DEADLINE_S)
    for number in range(1, 6):
        handler.emit(record("test", f"line {number} %s"))
    stream.go_on.set()
    handler.flush()
    handler.close()
    line_0, *others = [f"line {number} a\n" for number in range(4)]
    assert stream.taken == [line_0, "Log lines were dropped.\n", *others]
    assert dropped() == before + 2


DROPPING = """
import io, logging, sys, threading
import structlog
from order_service.runtime import logs

began, go_on, written = threading.Event(), threading.Event(), []

class Blocked(io.StringIO):
    def write(self, text):
        began.set()
        go_on.wait(20)
        written.append(text)
        return len(text)

stdout, sys.stderr = sys.stdout, Blocked()
logs.FLUSH_WITHIN_S = 10
logs.configure("json")
logger = structlog.get_logger()
logger.info("A line.", number=0)
began.wait(20)
for number in range(1, logs.QUEUED_LINES + 3):
    logger.info("A line.", number=number)
logging.getLogger().handlers[0].acquire()  # as the shutdown does, and before the writer says what was dropped
go_on.set()
logging.shutdown()
stdout.write("".join(written))
"""


def test_the_last_line_is_written_though_lines_were_dropped_before_it():
    ended = subprocess.run([sys.executable, "-c", DROPPING], capture_output=True, text=True, timeout=60, check=True)
    first, said, *others = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [first["number"], *(line["number"] for line in others)] == list(range(QUEUED_LINES + 1))
    assert (said["event"], said["level"], said["dropped"]) == ("Log lines were dropped.", "warning", 2)
    assert "timestamp" in said


PROGRAM = """
import sys, structlog
from order_service.runtime import logs
logs.configure("json")
for number in range(int(sys.argv[1])):
    structlog.get_logger().info("A line.", number=number)
print("done", flush=True)
"""


def test_all_lines_are_written_in_order_before_the_process_ends():
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, "5000"], capture_output=True, text=True, timeout=60, check=True
    )
    assert [json.loads(line)["number"] for line in ended.stderr.splitlines()] == list(range(5000))


def test_a_pipe_that_nobody_reads_holds_no_process_up():
    reading, writing = os.pipe()
    with subprocess.Popen([sys.executable, "-c", PROGRAM, "50000"], stdout=subprocess.PIPE, stderr=writing) as process:
        os.close(writing)
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"done\n"
            assert process.wait(60) == 0
        finally:
            process.kill()  # else a process that is held up would hold up the test for ever
    os.close(reading)
