"""The admin port of a worker with several processes. It asks each process over its own socket, and answers for all."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Final

import aiohttp
import msgspec
from aiohttp import web
from msgspec import Struct
from prometheus_client import REGISTRY, Metric
from prometheus_client.openmetrics import parser as open_metrics
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from order_service.runtime.admin import AdminServer, encoded_metrics
from order_service.runtime.readiness import NotReady, ReadinessFault
from order_service.worker.lane_states import LaneState, LaneStates

ANSWER_WITHIN_S: Final = 5.0
OPEN_METRICS: Final = "application/openmetrics-text"
PARENT: Final = "parent"
"""The label `process` of the parent's own metrics."""


class Process(Struct):
    """A process of a worker: its number from 1 on, and the socket of its admin server.

    `why_down` says why it may not answer: it is used only if nothing listens on the socket.
    """

    number: int
    socket: Path
    why_down: str = "it is starting"


class Silent(Struct, frozen=True):
    """A process that has not answered. `is_down` if nothing listens on its socket; else it may hang."""

    is_down: bool


class _Readiness(Struct):
    """The response of `/health/ready`."""

    starting: bool
    faults: list[ReadinessFault]


class CombinedAdminServer(AdminServer):
    """Serves the paths of an `AdminServer` for all processes of a worker."""

    def __init__(self, host: str, port: int, processes: Sequence[Process]) -> None:
        super().__init__(host, port, list)
        self._processes = processes

    async def _live(self, _request: web.Request) -> web.Response:
        """Report a process that listens and does not answer. The parent starts one that has ended again."""
        answers = await self._ask_all("/health/live")
        silent = [process.number for process, answer in answers if isinstance(answer, Silent) and not answer.is_down]
        body = {"live": False, "silent_processes": silent} if silent else {"live": True}
        return web.json_response(body, status=HTTPStatus.SERVICE_UNAVAILABLE if silent else HTTPStatus.OK)

    async def _ready(self, _request: web.Request) -> web.Response:
        starting, faults = False, []
        for process, answer in await self._ask_all("/health/ready"):
            if isinstance(answer, Silent):
                starting = True
                faults.append(_fault_of(process, answer))
                continue
            readiness = msgspec.json.decode(answer, type=_Readiness)
            starting |= readiness.starting
            faults += [NotReady.OF_PROCESS.fault(process=process.number, fault=fault) for fault in readiness.faults]
        return self._readiness(faults, is_starting=starting)

    async def _lanes(self, _request: web.Request) -> web.Response:
        lanes: list[LaneState] = []
        for _, answer in await self._ask_all("/lanes"):
            if not isinstance(answer, Silent):
                lanes += msgspec.json.decode(answer, type=LaneStates).lanes
        states = LaneStates(sorted(lanes, key=lambda lane: lane.partition))
        return web.Response(body=msgspec.json.encode(states), content_type="application/json")

    async def _metrics(self, request: web.Request) -> web.Response:
        """Return the metrics of all processes in the format that the request accepts. OpenMetrics has exemplars."""
        accept = request.headers.get("Accept", "")
        own, content_type = encoded_metrics(accept, REGISTRY)
        is_open = content_type.startswith(OPEN_METRICS)
        texts = {PARENT: own.decode()}
        for process, answer in await self._ask_all("/metrics", accept):
            if not isinstance(answer, Silent):
                texts[str(process.number)] = answer.decode()
        parse = open_metrics.text_string_to_metric_families if is_open else text_string_to_metric_families
        body, content_type = encoded_metrics(accept, Combined(texts, parse))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _ask_all(self, path: str, accept: str = "*/*") -> list[tuple[Process, bytes | Silent]]:
        answers = await asyncio.gather(*(_ask(process, path, accept) for process in self._processes))
        return list(zip(self._processes, answers, strict=True))


async def _ask(process: Process, path: str, accept: str) -> bytes | Silent:
    """Return the body of an answer. `/lanes` is unknown to a process that is still preparing: it has no lanes."""
    try:
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(str(process.socket)), timeout=aiohttp.ClientTimeout(ANSWER_WITHIN_S)
            ) as session,
            session.get(f"http://process{path}", headers={"Accept": accept}) as response,
        ):
            body = await response.read()
            return Silent(is_down=True) if response.status == HTTPStatus.NOT_FOUND else body
    except TimeoutError:
        return Silent(is_down=False)
    except aiohttp.ClientError:  # nothing listens, or the process has just ended
        return Silent(is_down=True)


def _fault_of(process: Process, silent: Silent) -> ReadinessFault:
    if silent.is_down:
        return NotReady.PROCESS_DOWN.fault(process=process.number, why=process.why_down)
    return NotReady.PROCESS_SILENT.fault(process=process.number, seconds=f"{ANSWER_WITHIN_S:g}")


class Combined(Collector):
    """The metrics of several processes, each sample with the label `process` unless it has one. `parse` reads them.

    Their sum would fall when one of them starts again, which Prometheus would take for a restart of all.
    """

    def __init__(
        self, texts: dict[str, str], parse: Callable[[str], Iterable[Metric]] = text_string_to_metric_families
    ) -> None:
        self._texts = texts
        self._parse = parse

    def collect(self) -> Iterable[Metric]:
        """Return each metric once, with the samples of all processes."""
        combined: dict[str, Metric] = {}
        for process, text in self._texts.items():
            for metric in self._parse(text):
                target = combined.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
                for sample in metric.samples:
                    target.samples.append(sample._replace(labels={"process": process} | sample.labels))
        return combined.values()
