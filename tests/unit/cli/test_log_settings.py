"""The settings of the log: which values they accept, and that every process that keeps running follows them."""

import json
import signal
import socket
import subprocess
import sys

import pytest
from pydantic import ValidationError

from order_service.settings import Settings
from tests.support.command_line import CommandLine
from tests.support.service import ROOT, until, without_kafka

SENTENCE = {"ecs": "message", "otel": "Body"}


@pytest.mark.parametrize(
    ("text", "levels"),
    [
        ("", {}),
        ("aiokafka=error", {"aiokafka": "error"}),
        (
            " aiokafka = WARNING, order_service.worker=debug,root=info,",
            {"aiokafka": "warning", "order_service.worker": "debug", "root": "info"},
        ),
        ("order_service=debug,order_service=debug", {"order_service": "debug"}),
    ],
)
def test_accepted_levels(text, levels):
    assert Settings(log_levels=text).level_of_loggers == levels


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("aiokafka", "must be name=level, separated by commas, as in aiokafka=error,order_service=debug"),
        ("=debug", "must be name=level, separated by commas, as in aiokafka=error,order_service=debug"),
        ("a..b=info", "must be name=level, separated by commas, as in aiokafka=error,order_service=debug"),
        ("aiokafka=loud", "the level of aiokafka must be one of debug, info, warning, error, critical"),
        (
            "aiokafka.conn=debug",
            "the level of aiokafka.conn must be info or higher: at debug, libraries log records and credentials",
        ),
        ("root=debug", "the level of root must be info or higher: at debug, libraries log records and credentials"),
        ("faust=info,faust=error", "sets the level of faust twice"),
    ],
)
def test_refused_levels_are_one_line_that_says_why(text, fault):
    with pytest.raises(ValidationError, match="log_levels"):
        Settings(log_levels=text)
    said = CommandLine({"ORDERS_LOG_LEVELS": text})("config", "--json", code=2).stderr
    assert said == f"ORDERS_LOG_LEVELS: {fault}\n"


def start(directory, style, command, **settings):
    """Start a process whose Kafka is away; it warns at once about a variable that it ignores."""
    log = directory / "log"
    environment = without_kafka(directory, ORDERS_LOG=style, ORDERS_KAFKA_PORT="tcp://10.96.1.2:9092") | settings
    with log.open("wb") as output:
        arguments = [sys.executable, "-m", "order_service.cli", *command]
        process = subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=output)
    return process, log


def lines(log):
    """Return the whole lines of a log, each of which must be an object."""
    return [json.loads(line) for line in log.read_text().rpartition("\n")[0].splitlines()]


def role(line, style):
    return (line if style == "ecs" else line["Resource"])["service.name"].removeprefix("order-service-")


def field(line, style, name):
    return (line if style == "ecs" else line["Attributes"]).get(f"orders.{name}")


@pytest.mark.parametrize(
    ("command", "style"), [("worker", "ecs"), ("projector", "otel"), ("web", "ecs"), ("web", "otel"), ("users", "otel")]
)
def test_every_line_of_a_process_follows_the_setting_also_its_last(tmp_path, command, style):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ports = {"ORDERS_ADMIN_PORT": port} | ({"ORDERS_USERS_PORT": port} if command == "users" else {})
        process, log = start(tmp_path, style, [command, "--json"], **ports)
        assert process.wait(60) == 1, log.read_text()
    sentence = SENTENCE[style]
    ignored, ended = lines(log)
    assert ignored[sentence] == "Variables that Kubernetes sets for Services are ignored as settings."
    assert ended[sentence] == "The process ends."
    assert field(ended, style, "exit_code") == 1
    assert port in field(ended, style, "reason")
    assert {role(line, style) for line in (ignored, ended)} == {command}


def test_of_several_processes_each_and_their_parent_follow_the_setting(tmp_path):
    process, log = start(tmp_path, "ecs", ["worker"], ORDERS_WORKERS="2", ORDERS_ADMIN_PORT="0")
    try:
        expected = {None, 1, 2}

        def seen():
            warned = [line for line in lines(log) if line["message"].startswith("Variables that Kubernetes sets")]
            return {line.get("orders.process") for line in warned} == expected

        until(seen, "the parent and both processes have logged")
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()
    assert {role(line, "ecs") for line in lines(log)} == {"worker"}


def test_of_a_local_run_every_line_follows_the_setting(tmp_path):
    process, log = start(tmp_path, "otel", ["up"], ORDERS_WORKERS="1", ORDERS_ADMIN_PORT="0", ORDERS_USERS_PORT="0")
    try:
        until(lambda: {role(line, "otel") for line in lines(log)} >= {"up", "users", "worker"}, "three have logged")
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()
    steps = [field(line, "otel", "step") for line in lines(log)]
    assert "the User Service stub has started" in steps
    assert steps[-1] == "everything has stopped"


def test_levels_by_logger_are_those_of_the_process(tmp_path):
    """A worker that cannot reach Kafka warns about that; here only our own logger may."""
    process, log = start(
        tmp_path,
        "ecs",
        ["worker"],
        ORDERS_LOG_LEVELS="aiokafka=critical,order_service.kafka=warning,order_service.cli=error",
        ORDERS_ADMIN_PORT="0",
    )
    try:
        until(lambda: "Kafka does not answer yet; trying again." in log.read_text(), "it has tried to reach Kafka")
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()
    assert {line["log.logger"] for line in lines(log)} == {"order_service.kafka.connection"}
