"""Lines in the names of ECS and OpenTelemetry: of our own code, of libraries, and of errors that no code catches."""

import json
import re
import subprocess
import sys
from datetime import datetime

import pytest

from order_service import __version__
from order_service.runtime.log_formats import ECS_NAMES, OTEL_NAMES, OWN, SEVERITIES
from tests.support.service import ROOT

ECS_FIELDS = {
    "@timestamp": str,
    "log.level": str,
    "message": str,
    "log.logger": str,
    "ecs.version": str,
    "service.name": str,
    "service.version": str,
    "process.pid": int,
    "trace.id": str,
    "http.request.id": str,
    "http.request.method": str,
    "http.response.status_code": int,
    "event.duration": int,
    "error.type": str,
    "error.message": str,
    "error.stack_trace": str,
}
"""The fields of ECS that a line can have, with their types. Source: ECS 9.4, `generated/csv/fields.csv`."""
ECS_REQUIRED = ["@timestamp", "log.level", "message"]
"""The first three fields, in this order. Source: ECS logging specification."""
OTEL_FIELDS = {
    "Timestamp": str,
    "SeverityText": str,
    "SeverityNumber": int,
    "Body": str,
    "TraceId": str,
    "Resource": dict,
    "InstrumentationScope": dict,
    "Attributes": dict,
}
"""The fields of a log record that a line can have. Source: OpenTelemetry, Logs Data Model, "Log and Event Record"."""
OTEL_ATTRIBUTES = {
    "http.request.method": str,
    "http.response.status_code": int,
    "exception.type": str,
    "exception.message": str,
    "exception.stacktrace": str,
}
"""Source: OpenTelemetry, semantic conventions 1.3x for HTTP and for exceptions in logs."""
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"

PROGRAM = """
import logging, sys, threading, warnings
import structlog
from order_service.runtime import logs
from order_service.runtime.watchdog import write_at_once

logs.configure(sys.argv[1], fields={"process": 2}, role="worker", levels={"order_service.worker": "debug"})
logs.log_uncaught_errors()
log = structlog.get_logger("order_service.worker.lane")

log.info("A line.", partition=3, why=None, names={"a"}, counts={"b.c": 1}, place=object)
log.debug("Details.")
structlog.get_logger("order_service.views").debug("Not wanted.")
with structlog.contextvars.bound_contextvars(request_id="request-1", trace_id="0af7651916cd43dd8448eb211c80319c"):
    log.warning("Failed.", error="of the sender")
    logging.getLogger("aiokafka.conn").error("No node %s", 7)
    logging.getLogger("aiokafka.conn").info("Not wanted.")
log.info("Request served.", http_method="GET", http_status=200, operation="get_order", duration_ns=1_200_000)
try:
    raise ValueError("a bug")
except ValueError:
    logging.getLogger("asyncio").exception("Task exception was never retrieved")
warnings.warn("old", DeprecationWarning)
write_at_once("Hung.", exit_code=15, stack=["f:1"])
thread = threading.Thread(target=lambda: 1 / 0, name="helper")
thread.start()
thread.join()
class Unraisable:
    def __del__(self):
        raise KeyError("lost")
Unraisable()
raise TypeError("nothing catches this")
"""
SENTENCES = [
    "A line.", "Details.", "Failed.", "No node 7", "Request served.", "Task exception was never retrieved", "old",
    "Hung.", "Uncaught error in a thread.", "An error could not be raised.", "Uncaught error.",
]  # fmt: skip


@pytest.fixture(scope="module")
def written():
    """Return the lines of a program by format."""

    def lines(style):
        command = [sys.executable, "-W", "always", "-c", PROGRAM, style]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
        assert (ended.returncode, ended.stdout) == (1, "")
        return [json.loads(line) for line in ended.stderr.splitlines()]

    return {style: lines(style) for style in ("ecs", "otel", "json")}


def by_sentence(lines, name):
    """Return the lines by their sentences, of which `write_at_once` and the writing thread may change the order."""
    found = {}
    for line in lines:
        [sentence] = [each for each in SENTENCES if each in line[name]] or [line[name]]
        found[sentence] = line
    assert sorted(found) == sorted(SENTENCES)
    return found


def test_every_ecs_field_has_a_published_name_and_type_or_is_our_own(written):
    for line in written["ecs"]:
        assert list(line)[:3] == ECS_REQUIRED
        for name, value in line.items():
            assert name.startswith(OWN) or isinstance(value, ECS_FIELDS[name]), (name, value)
        assert line["@timestamp"].endswith("Z") or line["@timestamp"].endswith("+00:00")
        datetime.fromisoformat(line["@timestamp"])
        assert (line["service.name"], line["service.version"]) == ("order-service-worker", __version__)
        assert line["orders.process"] == 2


def test_every_otel_field_has_a_published_name_and_type_or_is_our_own(written):
    for line in written["otel"]:
        for name, value in line.items():
            assert isinstance(value, OTEL_FIELDS[name]), (name, value)
        for name, value in line["Attributes"].items():
            assert name.startswith(OWN) or isinstance(value, OTEL_ATTRIBUTES[name]), (name, value)
        assert SEVERITIES[line["SeverityText"].lower()] == line["SeverityNumber"]
        assert line["Resource"].keys() == {"service.name", "service.version", "process.pid"}
        assert (line["Resource"]["service.name"], line["Attributes"]["orders.process"]) == ("order-service-worker", 2)
        assert line["InstrumentationScope"]["Name"]
        assert 1.7e18 < int(line["Timestamp"]) < 9.2e18, "nanoseconds"


def test_our_lines_keep_their_fields_and_nothing_nests(written):
    ecs = by_sentence(written["ecs"], "message")
    otel = by_sentence(written["otel"], "Body")
    own = {
        "orders.partition": 3,
        "orders.names": ["a"],
        "orders.counts": '{"b.c": 1}',
        "orders.place": "<class 'object'>",
        "orders.process": 2,
    }
    assert {name: value for name, value in ecs["A line."].items() if name.startswith(OWN)} == own
    assert otel["A line."]["Attributes"] == own
    assert (ecs["A line."]["log.logger"], ecs["Details."]["log.level"]) == ("order_service.worker.lane", "debug")
    served = {"http.request.method": "GET", "http.response.status_code": 200, "orders.operation": "get_order"}
    assert ecs["Request served."].items() >= (served | {"event.duration": 1_200_000}).items()
    assert otel["Request served."]["Attributes"].items() >= (served | {"orders.duration_ns": 1_200_000}).items()


def test_lines_of_a_request_have_its_ids_also_those_of_libraries(written):
    ecs = by_sentence(written["ecs"], "message")
    otel = by_sentence(written["otel"], "Body")
    plain = by_sentence(written["json"], "event")
    for sentence in SENTENCES:
        is_within = sentence in {"Failed.", "No node 7"}
        assert ecs[sentence].get("trace.id") == otel[sentence].get("TraceId") == (TRACE_ID if is_within else None)
        assert ecs[sentence].get("http.request.id") == ("request-1" if is_within else None)
        assert otel[sentence]["Attributes"].get("orders.request_id") == ("request-1" if is_within else None)
        assert plain[sentence].get("request_id") == ("request-1" if is_within else None)
        assert plain[sentence].get("trace_id") == (TRACE_ID if is_within else None)
    assert ecs["Failed."]["error.message"] == otel["Failed."]["Attributes"]["exception.message"] == "of the sender"
    assert ecs["No node 7"]["log.logger"] == otel["No node 7"]["InstrumentationScope"]["Name"] == "aiokafka.conn"


@pytest.mark.parametrize(
    ("sentence", "kind", "text"),
    [
        ("Task exception was never retrieved", "ValueError", "a bug"),
        ("Uncaught error in a thread.", "ZeroDivisionError", "division by zero"),
        ("An error could not be raised.", "KeyError", "'lost'"),
        ("Uncaught error.", "TypeError", "nothing catches this"),
    ],
)
def test_errors_have_type_text_and_traceback_also_if_no_code_catches_them(written, sentence, kind, text):
    ecs = by_sentence(written["ecs"], "message")[sentence]
    otel = by_sentence(written["otel"], "Body")[sentence]["Attributes"]
    plain = by_sentence(written["json"], "event")[sentence]
    assert (ecs["error.type"], ecs["error.message"]) == (kind, text)
    assert (otel["exception.type"], otel["exception.message"]) == (kind, text)
    for trace in (ecs["error.stack_trace"], otel["exception.stacktrace"], plain["exception"]):
        assert trace.startswith("Traceback (most recent call last):")
        assert trace.endswith(f"{kind}: {text}")


def test_no_name_is_given_twice():
    for names in (ECS_NAMES, OTEL_NAMES):
        assert len(set(names.values())) == len(names)
    assert set(ECS_NAMES.values()) <= set(ECS_FIELDS)
    assert set(OTEL_NAMES.values()) <= set(OTEL_ATTRIBUTES)


def test_the_page_of_logs_has_every_name_and_its_examples_are_lines():
    page = (ROOT / "docs" / "reference" / "logs.md").read_text(encoding="utf-8")
    for name in (*ECS_FIELDS, *OTEL_FIELDS, *OTEL_ATTRIBUTES, *ECS_NAMES, *OTEL_NAMES):
        assert f"`{name}" in page, name
    ecs, otel = (json.loads(example) for example in re.findall(r"```json\n(.*?)```", page, re.DOTALL))
    assert not [name for name in ecs if name not in ECS_FIELDS and not name.startswith(OWN)]
    assert not [name for name in otel if name not in OTEL_FIELDS]
    assert {name for name in otel["Attributes"] if not name.startswith(OWN)} <= OTEL_ATTRIBUTES.keys()
