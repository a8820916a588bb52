"""The run of `order-service up`: Kafka and the User Service stub, unless they are set, and all of our processes."""

import asyncio
import http.client
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import structlog
from msgspec import Struct, structs

from order_service.errors import EmbeddedError, PortTakenError
from order_service.local.broker import free_port, is_taken
from order_service.local.kafka import Docker, External, Local, choose_kafka, local_broker, remove_left_container
from order_service.runtime.supervisor import CLI, Child, Supervisor
from order_service.settings import Settings

Report = Callable[[str], object]

log = structlog.get_logger()

ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - to connect to, not to listen on
NAMES = {
    "kafka": "Kafka",
    "users": "the User Service stub",
    "worker": "the worker",
    "projector": "the projector",
    "web": "the HTTP server",
}


class _LoggedReports:
    """Writes what the supervisor reports to the log, where a program reads all lines of a run."""

    def started(self, child: Child) -> None:
        log.info("Process started.", name=child.name)

    def ended(self, child: Child, code: int, wait_s: float | None) -> None:
        why = None if child.why is None else child.why()
        log.error("Process ended.", name=child.name, exit_code=code, restart_in_s=wait_s, why=why)

    def not_ready(self, child: Child, within_s: float) -> None:
        log.error("Process was not ready in time.", name=child.name, within_s=within_s)

    def killed(self, child: Child, within_s: float) -> None:
        log.error("Process did not stop in time and is killed.", name=child.name, within_s=within_s)


class Running(Struct, frozen=True):
    """The addresses of a run."""

    http: str
    kafka: str
    users: str
    health: Mapping[str, str]
    """The health address of each of our processes; its `/metrics` are on the same port."""
    hints: Mapping[str, str]
    """The settings that another terminal needs to use this run."""


def run(
    settings: Settings,
    *,
    report: Report,
    on_ready: Callable[[Running], object],
    beside: Callable[[Settings, Callable[[], object]], Awaitable[object]] | None = None,
) -> int:
    """Run everything until SIGINT or SIGTERM, then stop it; return the exit code.

    `report` gets a line for each step, `on_ready` once the addresses. `beside` runs in this process from when all is
    ready, with the settings to reach Kafka; `on_ready` then waits until it has begun. Raises EmbeddedError,
    PortTakenError, SetupError or DatabaseError with one line if the run cannot start.
    """
    # Until the supervisor takes over, SIGTERM must stop a running Maven, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    check_projectors(settings)
    hints = _hints(settings)
    settings = _with_ports(settings)
    choice = choose_kafka(settings)
    servers = choice.bootstrap_servers if isinstance(choice, External) else f"127.0.0.1:{settings.kafka_port}"
    has_stub = "user_service_url" not in settings.model_fields_set
    if isinstance(choice, Docker):
        remove_left_container(choice, settings.data_dir / "kafka", settings.kafka_port)
    _check_ports(settings, has_kafka=not isinstance(choice, External), has_stub=has_stub)
    url = _url(settings.host, settings.users_port) if has_stub else settings.user_service_url
    environment = _environment(settings, servers, url, is_local=not isinstance(choice, External))
    children = [] if isinstance(choice, External) else [_kafka(choice, settings, report)]
    children += [_users(settings, environment)] if has_stub else []
    several = [f"projector-{index}" for index in range(settings.projectors)] if settings.projectors > 1 else []
    names = ["worker", *(several or ["projector"]), "web"]
    admin_ports = {name: settings.admin_port if name == "worker" else free_port() for name in names}
    environment["ORDERS_ADMIN_ADDRESSES"] = _addresses(settings.admin_address, admin_ports.values())
    children += [_process(name, port, settings, environment) for name, port in admin_ports.items()]
    health = {name: f"{_url(settings.admin_address, port)}/health/ready" for name, port in admin_ports.items()}
    running = Running(_url(settings.host, settings.http_port), servers, _without_user(url), health, hints)
    announced = [_announced(child, report) for child in children]
    is_read_by_program = settings.log in {"ecs", "otel"}
    reports = _LoggedReports() if is_read_by_program else None
    supervisor = Supervisor(announced, passes_lines=is_read_by_program, reports=reports)
    reachable = settings.model_copy(update={"kafka_bootstrap_servers": servers})
    watching = None if beside is None else partial(beside, reachable)
    code = asyncio.run(supervisor.run(lambda: on_ready(running), watching))
    report("everything has stopped")
    return code


def ready_lines(running: Running, took_s: float) -> list[str]:
    """Return the lines that show the addresses of a ready run, and what to try in another terminal."""
    prefix = "".join(f"{name}={value} " for name, value in running.hints.items()) + _program()
    health = ", ".join(f"{name} {url}" for name, url in running.health.items())
    return [
        f"ready in {took_s:.0f} s: orders at {running.http}, Kafka at {running.kafka}, users at {running.users}",
        f"health: {health}; metrics: /metrics on the same ports",
        "Try in another terminal:",
        f"  {prefix} create order-1 --user dana --currency EUR --line mug-blue:2:1250",
        f"  {prefix} pay order-1 --payment-id payment-1 --amount 2500 --currency EUR",
        f"  {prefix} timeline order-1",
        f"  {prefix} list",
        f"  curl {running.http}/v1/orders/order-1",
        "Ctrl-C stops everything; the data stays.",
    ]


def _program() -> str:
    """Return the command as it can be typed in another terminal in this directory."""
    if shutil.which("order-service") is not None:
        return "order-service"
    script = Path(sys.argv[0])
    if script.name != "order-service":
        return "order-service"
    return str(script.relative_to(Path.cwd())) if script.is_relative_to(Path.cwd()) else str(script)


def check_projectors(settings: Settings) -> None:
    """Raise SetupError or DatabaseError if the views cannot have as many projectors as are set.

    Otherwise each of them would end, and be started again for minutes.
    """
    if settings.projectors > 1:
        from order_service.views.process import share_of  # noqa: PLC0415 - a database driver takes long to import
        from order_service.views.tables import database_of  # noqa: PLC0415 - likewise

        share_of(settings.model_copy(update={"projector_index": 0}), database_of(settings))


def _hints(settings: Settings) -> dict[str, str]:
    is_set = settings.model_fields_set
    hints = {}
    if settings.kafka_bootstrap_servers:
        hints["KAFKA_BOOTSTRAP_SERVERS"] = settings.kafka_bootstrap_servers
    elif "kafka_port" in is_set:
        hints["ORDERS_KAFKA_PORT"] = str(settings.kafka_port)
    if "http_port" in is_set:
        hints["ORDERS_HTTP_PORT"] = str(settings.http_port)
    if settings.topic_prefix:
        hints["ORDERS_TOPIC_PREFIX"] = settings.topic_prefix
    return hints


def _with_ports(settings: Settings) -> Settings:
    """Return the settings with a free port for each port 0, so that all children use the same one."""
    fields = ("kafka_port", "admin_port", "users_port", "http_port")
    return settings.model_copy(update={field: free_port() for field in fields if getattr(settings, field) == 0})


def _check_ports(settings: Settings, *, has_kafka: bool, has_stub: bool) -> None:
    """Raise PortTakenError before anything starts: otherwise a taken port would end a child with a long log."""
    ports = {"ORDERS_HTTP_PORT": settings.http_port, "ORDERS_ADMIN_PORT": settings.admin_port}
    if has_kafka:
        ports["ORDERS_KAFKA_PORT"] = settings.kafka_port
    if has_stub:
        ports["ORDERS_USERS_PORT"] = settings.users_port
    if len(set(ports.values())) < len(ports):
        raise PortTakenError(f"{', '.join(sorted(ports))} must be different ports")
    for name, port in ports.items():
        if is_taken(port):
            raise PortTakenError(f"port {port} is taken: stop the process that uses it, or set {name} to another one")


def _kafka(choice: Local, settings: Settings, report: Report) -> Child:
    _check_data_dir(settings.data_dir)
    report("Kafka is being prepared ...")
    try:
        return local_broker(choice, settings).child()
    except OSError as error:
        cause = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        raise EmbeddedError(f"Kafka cannot be prepared ({cause}): set ORDERS_DATA_DIR, or XDG_CACHE_HOME") from error


def _check_data_dir(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        line = f"the folder {directory} cannot be written ({error.strerror}): set ORDERS_DATA_DIR to another one"
        raise EmbeddedError(line) from error


def _users(settings: Settings, environment: Mapping[str, str]) -> Child:
    return Child(
        name="users",
        command=(*CLI, "users"),
        env=environment,
        ready=lambda: _get(settings.host, settings.users_port, "/mode")[0] == HTTPStatus.OK,
    )


def _process(name: str, admin_port: int, settings: Settings, environment: Mapping[str, str]) -> Child:
    """Return a child that is ready when it does its work; those that need the views wait until all are built.

    The name of one of several projectors ends with its index.
    """
    command, _, index = name.partition("-")
    is_worker = name == "worker"
    of_several = {"ORDERS_PROJECTOR_INDEX": index} if index else {}
    return Child(
        name=name,
        command=(*CLI, command, *(["--create-topics"] if is_worker else [])),
        env={**environment, **of_several, "ORDERS_ADMIN_PORT": str(admin_port)},
        ready=lambda: has_started(settings.admin_address, admin_port),
        ready_within_s=120.0 if is_worker else 3600.0,
    )


def _environment(settings: Settings, servers: str, user_service_url: str, *, is_local: bool) -> dict[str, str]:
    """Return the environment of the children: this process's environment plus the settings of this run."""
    overrides = {
        "KAFKA_BOOTSTRAP_SERVERS": servers,
        "ORDERS_KAFKA": "",
        "ORDERS_PARTITIONS": str(settings.partitions),
        "ORDERS_WORKERS": str(worker_count(settings, os.cpu_count() or 1)),
        "ORDERS_USERS_PORT": str(settings.users_port),
        "ORDERS_HTTP_PORT": str(settings.http_port),
        "ORDERS_LOG": settings.log or ("console" if sys.stderr.isatty() else "json"),
        "USER_SERVICE_URL": user_service_url,
    }
    if is_local and not settings.instance_id:
        # A restarted worker with the same id gets its partitions back at once, not after its session has expired.
        overrides["ORDERS_INSTANCE_ID"] = "up-1"
    return dict(os.environ) | overrides


def worker_count(settings: Settings, cores: int) -> int:
    """Return the number of worker processes: ORDERS_WORKERS, or one for two cores. Kafka and the others need the rest.

    More than one for each partition would have nothing to do.
    """
    if "workers" in settings.model_fields_set:
        return settings.workers
    return max(1, min(cores // 2, settings.partitions))


def _announced(child: Child, report: Report) -> Child:
    """Return the child with a readiness check that also reports when it starts and when it has started."""
    kind, _, index = child.name.partition("-")
    name, is_ready = f"{NAMES[kind]} {index}".rstrip(), child.ready or (lambda: True)
    is_starting = False

    def ready() -> bool:
        nonlocal is_starting
        if not is_starting:
            report(f"{name} is starting ...")
        is_starting = not is_ready()
        if not is_starting:
            report(f"{name} has started")
        return not is_starting

    return structs.replace(child, ready=ready)


def has_started(host: str, port: int) -> bool:
    """Return whether the process with this admin port does its work, perhaps with parked lanes or stopped views."""
    status, body = _get(host, port, "/health/ready")
    if status != HTTPStatus.SERVICE_UNAVAILABLE:
        return status == HTTPStatus.OK
    try:
        return json.loads(body)["starting"] is False
    except (ValueError, KeyError, TypeError):  # another program has this port
        return False


def _get(host: str, port: int, path: str) -> tuple[int, bytes]:
    """Return the status and body of an answer, or status 0 without one."""
    connection = http.client.HTTPConnection(ANY_ADDRESS.get(host, host), port, timeout=1.0)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def _without_user(url: str) -> str:
    """Return a URL without user name and password, to show it."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _addresses(host: str, ports: Iterable[int]) -> str:
    return ",".join(urlsplit(_url(host, port)).netloc for port in ports)


def _url(host: str, port: int) -> str:
    host = ANY_ADDRESS.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
