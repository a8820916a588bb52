"""The HTTP server: routes behind their limits, and one place where every fault becomes a problem."""

import time
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
from aiohttp import web
from prometheus_client import Gauge, Histogram
from sqlalchemy.exc import SQLAlchemyError

from order_service.errors import KafkaAwayError, KeysAway, Unauthorized
from order_service.kafka.topics import TopicNames
from order_service.web.access.auth import LOCAL, Everybody, Tokens
from order_service.web.access.local_only import is_from_here
from order_service.web.access.rate_limit import Limits
from order_service.web.api.operations import OPERATIONS, Operation
from order_service.web.api.routes import Api, Call
from order_service.web.docs import event_catalogue, pages, schema_registry
from order_service.web.http import requests
from order_service.web.http.problems import Problem, Trouble

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = structlog.get_logger()

REQUEST_SECONDS: Final = Histogram(
    "orders_http_request_seconds",
    "From the head of a request to its answer, by operation and status.",
    ["operation", "status"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
OPEN: Final = Gauge("orders_http_requests_open", "Requests that have no answer yet, and open streams.")

HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""On every answer that does not say otherwise: a page says what it loads, an order how long it may be kept."""
OPERATION: Final = web.RequestKey("operation", str)
"""Under which a request says what it asks for."""
CHALLENGE: Final = {"WWW-Authenticate": 'Bearer realm="orders"'}
TROUBLE_OF: Final = {
    404: Trouble.NOT_FOUND,
    405: Trouble.METHOD_NOT_ALLOWED,
    413: Trouble.TOO_LARGE,
}


class Server:
    """Makes the application: `faults` says why nothing can be read yet, `names` and `partitions` tell of our topics."""

    def __init__(
        self,
        api: Api,
        authentication: Everybody | Tokens,
        limits: Limits,
        faults: Callable[[], list[str]],
        names: TopicNames,
        partitions: int,
    ) -> None:
        self._topics = names, partitions
        self._api = api
        self._authentication = authentication
        self._limits = limits
        self._faults = faults

    def application(self) -> web.Application:
        """Make it."""
        app = web.Application(client_max_size=requests.MAX_BODY_BYTES, middlewares=[problems])
        for operation in OPERATIONS:
            app.router.add_route(operation.method, operation.path, self._served(operation))
            if operation.method == "GET" and not operation.is_stream:
                app.router.add_route("HEAD", operation.path, self._served(operation))
        app.add_routes(pages.routes())
        app.add_routes(schema_registry.routes(self._topics[0]))
        app.add_routes(event_catalogue.routes(*self._topics))
        app.on_response_prepare.append(_harden)
        return app

    def _served(self, operation: Operation) -> Handler:
        """Give the handler of an operation: who calls, how often, and is there something to read."""
        handle = getattr(self._api, operation.name)

        async def serve(request: web.Request) -> web.StreamResponse:
            request[OPERATION] = operation.name
            caller = await self._authentication.caller(request.headers.get("Authorization"))
            if caller is not LOCAL:
                self._limits.take(caller.actor)
            elif not is_from_here(request.headers):
                raise Problem(Trouble.FOREIGN_SITE)
            if faults := self._faults():
                raise Problem(Trouble.NOT_YET, f"{faults[0].capitalize()}.", headers={"Retry-After": "5"})
            query = requests.read_query(request, operation.query)
            answer: web.StreamResponse = await handle(Call(request, caller, query))
            return answer

        return serve


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever goes wrong into a problem, and measure."""
    start = time.monotonic()
    OPEN.inc()
    status = 0
    try:
        answer = await _answered(request, handler)
        status = answer.status
        return answer
    finally:
        OPEN.dec()
        operation = request.get(OPERATION, "none")
        REQUEST_SECONDS.labels(operation, str(status)).observe(time.monotonic() - start)


async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Problem as problem:
        return problem.response()
    except Unauthorized as error:
        log.info("A request carries no valid token.", error=str(error), operation=request.get(OPERATION))
        return Problem(Trouble.UNAUTHORIZED, headers=CHALLENGE).response()
    except web.HTTPException as error:
        kind = TROUBLE_OF.get(error.status, Trouble.BAD_REQUEST)
        headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        return Problem(kind, headers=headers).response()
    except (KafkaAwayError, KeysAway, SQLAlchemyError) as error:
        why = type(error).__name__ if isinstance(error, SQLAlchemyError) else str(error)  # a driver's may hold values
        log.warning("A request cannot be served now.", why=why, operation=request.get(OPERATION))
        return Problem(Trouble.AWAY, headers={"Retry-After": "1"}).response()
    except Exception as error:  # noqa: BLE001 - the last one who can answer; what it was is for the log alone
        log.error(  # noqa: TRY400 - a traceback can hold values
            "A request has met a fault of ours.",
            error=type(error).__name__,
            operation=request.get(OPERATION),
            where=_where(error),
        )
        if request.writer.output_size > 0:  # a stream has begun: a second head would be read as an event
            raise ConnectionResetError from None
        return Problem(Trouble.INTERNAL).response()


def _where(error: BaseException) -> str:
    """Say where an error was raised, without its values."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"


def harden(answer: web.StreamResponse) -> None:
    """Add the headers that make an answer harmless, whoever shows it."""
    for name, value in HEADERS.items():
        answer.headers.setdefault(name, value)


async def _harden(_request: web.Request, answer: web.StreamResponse) -> None:
    harden(answer)
    answer.headers.pop("Server", None)  # aiohttp has just named itself, its version and Python's
