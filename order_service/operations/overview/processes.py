"""Asks the admin ports of all processes for their version, their readiness, their lanes and their counts."""

import asyncio
import socket
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from ipaddress import ip_address
from typing import Final

import msgspec
from msgspec import Struct, field
from prometheus_client.parser import text_string_to_metric_families

from order_service.errors import NoResponse
from order_service.http_client import HttpClient, Reply
from order_service.worker.lane_states import LaneState, LaneStates

ANSWER_WITHIN_S: Final = 3.0
BODY_MAX_BYTES: Final = 4 * 1024 * 1024
PROCESSES_MAX: Final = 200
"""How many addresses are asked."""
CONNECTIONS_MAX: Final = 20
REASONS_MAX: Final = 20
"""How many reasons of a process are shown: a worker has one for each partition."""
PARENT: Final = "parent"
"""The process of a worker of several processes that decides nothing."""
BUILD: Final = "orders_build_info"
COMMANDS: Final = "orders_commands_total"
DEAD_LETTERS: Final = "orders_dead_letters_total"
WANTED: Final = tuple(f"{name}{{" for name in (BUILD, COMMANDS, DEAD_LETTERS))
"""The beginnings of the lines of `/metrics` that are read: parsing all of them would take ten times as long."""

_lookups: Final = ThreadPoolExecutor(2, "admin-addresses")
"""Threads of their own: while DNS hangs, lookups must not take the threads in which callers' queries run."""

Counts = Mapping[tuple[str, str], float]
"""What a process has counted since its start, by process (address and number) and by reason."""


class ProcessRow(Struct, frozen=True):
    """What answers at an admin address. `state` is `ready`, `starting`, `not ready` or `no answer`.

    `versions` has more than one entry if the processes of a worker differ; none for a version without the metric.
    `reasons` says why it is not ready.
    """

    address: str
    component: str
    versions: list[str]
    process_count: int
    state: str
    reasons: list[str]


class ProcessReport(Struct, frozen=True):
    """A row, the lanes of a worker, the names of its processes, and what they have counted."""

    row: ProcessRow
    lanes: list[LaneState] = field(default_factory=list)
    processes: list[str] = field(default_factory=list)
    refused: dict[tuple[str, str], float] = field(default_factory=dict)
    dead_letters: dict[tuple[str, str], float] = field(default_factory=dict)


class Metrics(Struct, frozen=True):
    """What is read of `/metrics`."""

    component: str
    versions: list[str]
    processes: list[str]
    refused: dict[tuple[str, str], float]
    dead_letters: dict[tuple[str, str], float]


class _Readiness(Struct):
    """The response of `/health/ready`."""

    ready: bool
    starting: bool
    faults: list[str]


async def ask_processes(addresses: Sequence[str]) -> list[ProcessReport]:
    """Ask these addresses (`HOST:PORT`). A name that has several addresses stands for a process at each of them."""
    targets: dict[str, str] = {}
    for address in addresses:
        targets |= await _resolved(address)
    client = HttpClient(
        timeout_s=ANSWER_WITHIN_S,
        body_max_bytes=BODY_MAX_BYTES,
        reads_errors=True,
        keeps_alive=False,
        connections_max=CONNECTIONS_MAX,
    )
    try:
        shown = sorted(targets)[:PROCESSES_MAX]
        return await asyncio.gather(*(_ask(client, address, targets[address]) for address in shown))
    finally:
        await client.close()


def lane_states(reports: Iterable[ProcessReport]) -> dict[int, tuple[str, LaneState]]:
    """Return the state of each lane with the address of its worker. A parked lane precedes one that is claimed."""
    states: dict[int, tuple[str, LaneState]] = {}
    for report in reports:
        for lane in report.lanes:
            known = states.get(lane.partition)
            if known is None or known[1].state == "claiming":
                states[lane.partition] = (report.row.address, lane)
    return states


def read_metrics(address: str, text: str) -> Metrics:
    """Return what a page needs of the metrics of the process at an address. Raises ValueError for another format."""
    lines = [line for line in text.splitlines() if line.startswith(WANTED)]
    builds: dict[str, tuple[str, str]] = {}
    refused: dict[tuple[str, str], float] = {}
    dead_letters: dict[tuple[str, str], float] = {}
    for family in text_string_to_metric_families("\n".join([*lines, ""])):
        for sample in family.samples:
            labels = sample.labels
            process = labels.get("process", "")
            counted_by = (f"{address}/{process}", labels.get("reason", ""))
            if sample.name == BUILD:
                builds[process] = (labels.get("component", ""), labels.get("version", ""))
            elif sample.name == COMMANDS and labels.get("outcome") == "rejected":
                refused[counted_by] = refused.get(counted_by, 0.0) + sample.value  # over the types of commands
            elif sample.name == DEAD_LETTERS:
                dead_letters[counted_by] = sample.value
    return Metrics(
        component=next((component for component, _ in builds.values()), ""),
        versions=sorted({version for _, version in builds.values()}),
        processes=[f"{address}/{process}" for process in sorted(builds.keys() - {PARENT})],
        refused=refused,
        dead_letters=dead_letters,
    )


async def _resolved(address: str) -> dict[str, str]:
    """Return the addresses of a name: IPv4 ones if it has any, since a process with both is one process.

    Each is what to show, with what to connect to. A name with one address is shown itself, so that people recognise
    it. If it has no address, or DNS does not answer, there is nothing to connect to.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if _is_literal(host):
        return {address: address}
    try:
        async with asyncio.timeout(ANSWER_WITHIN_S):
            found = await asyncio.get_running_loop().run_in_executor(_lookups, _look_up, host, port)
    except (OSError, TimeoutError):
        return {address: ""}
    family = socket.AF_INET if any(each == socket.AF_INET for each, _ in found) else socket.AF_INET6
    hosts = sorted({each for of_family, each in found if of_family == family})
    targets = [f"[{each}]:{port}" if ":" in each else f"{each}:{port}" for each in hosts]
    return {address: targets[0]} if len(targets) == 1 else {each: each for each in targets}


def _look_up(host: str, port: str) -> list[tuple[int, str]]:
    """Return the addresses of a host, each with its family. Raises OSError."""
    return [(each[0], str(each[4][0])) for each in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def _is_literal(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


async def _ask(client: HttpClient, address: str, target: str) -> ProcessReport:
    if not target:
        return _silent(address, "its name cannot be resolved")
    try:
        ready, metrics, lanes = await asyncio.gather(
            *(client.request("GET", f"http://{target}{path}") for path in ("/health/ready", "/metrics", "/lanes"))
        )
        return _report(address, ready, metrics, lanes)
    except NoResponse as error:
        return _silent(address, str(error))
    except (ValueError, msgspec.MsgspecError):
        return _silent(address, "another program has this port")


def _report(address: str, ready: Reply, metrics: Reply, lanes: Reply) -> ProcessReport:
    """Return what a process has answered. A projector and a server have no lanes, nor has a worker that starts."""
    readiness = msgspec.json.decode(ready.body, type=_Readiness)
    read = read_metrics(address, metrics.body.decode())
    held = msgspec.json.decode(lanes.body, type=LaneStates).lanes if lanes.status == HTTPStatus.OK else []
    state = "ready" if readiness.ready else "starting" if readiness.starting else "not ready"
    reasons = readiness.faults[:REASONS_MAX]
    if len(readiness.faults) > REASONS_MAX:
        reasons.append(f"and {len(readiness.faults) - REASONS_MAX} more")
    row = ProcessRow(address, read.component, read.versions, max(1, len(read.processes)), state, reasons)
    return ProcessReport(row, held, read.processes, read.refused, read.dead_letters)


def _silent(address: str, why: str) -> ProcessReport:
    return ProcessReport(ProcessRow(address, "", [], 0, "no answer", [why]))
