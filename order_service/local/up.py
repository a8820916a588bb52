"""What `order-service up` starts: Kafka and the User Service stub, unless they are named, and all of our processes."""

import asyncio
import http.client
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from msgspec import Struct, structs

from order_service.errors import EmbeddedError, PortTakenError
from order_service.local.broker import free_port, is_taken
from order_service.local.kafka import External, Local, choose_kafka, local_broker
from order_service.local.supervisor import Child, Supervisor
from order_service.settings import Settings

Say = Callable[[str], object]

EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - we do not listen, we look there
NAMES = {
    "kafka": "Kafka",
    "users": "the User Service stub",
    "worker": "the worker",
    "projector": "the projector",
    "web": "the HTTP server",
}
OURS = (sys.executable, "-P", "-m", "order_service.cli")
"""`-P`: a file in the current folder must not stand in for a module."""


class Running(Struct, frozen=True):
    """Where everything is."""

    http: str
    kafka: str
    users: str
    health: Mapping[str, str]
    """Of each of our processes; its `/metrics` are at the same port."""
    hints: Mapping[str, str]
    """What another terminal must have set to mean this run."""

    def as_dict(self) -> dict[str, object]:
        """Give it for a program."""
        return structs.asdict(self)


def run(settings: Settings, *, say: Say, on_ready: Callable[[Running], object]) -> int:
    """Run all of it until SIGINT or SIGTERM, then end it; give the exit code.

    `say` is told what is going on, `on_ready` once where everything is. Raises EmbeddedError or PortTakenError, in one
    line, if it cannot begin.
    """
    # Until the supervisor takes over, SIGTERM must end a Maven that we have started, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    hints = _hints(settings)
    settings = _with_ports(settings)
    choice = choose_kafka(settings)
    servers = choice.bootstrap_servers if isinstance(choice, External) else f"127.0.0.1:{settings.kafka_port}"
    has_stub = "user_service_url" not in settings.model_fields_set
    _check_ports(settings, has_kafka=not isinstance(choice, External), has_stub=has_stub)
    url = _url(settings.host, settings.users_port) if has_stub else settings.user_service_url
    environment = _environment(settings, servers, url, is_local=not isinstance(choice, External))
    children = [] if isinstance(choice, External) else [_kafka(choice, settings, say)]
    children += [_users(settings, environment)] if has_stub else []
    children += [_worker(settings, environment)]
    ports = {name: free_port() for name in ("projector", "web")}
    children += [_with_admin_port(name, port, settings, environment) for name, port in ports.items()]
    admin_ports = {"worker": settings.admin_port, **ports}
    health = {name: f"{_url(settings.host, port)}/health/ready" for name, port in admin_ports.items()}
    running = Running(_url(settings.host, settings.http_port), servers, _without_user(url), health, hints)
    supervisor = Supervisor([_announced(child, say) for child in children])
    code = asyncio.run(supervisor.run(lambda: on_ready(running)))
    say("all of it has ended")
    return code


def ready_lines(running: Running, took_s: float) -> list[str]:
    """Say that it is ready, where everything is, and what to try in another terminal."""
    prefix = "".join(f"{name}={value} " for name, value in running.hints.items()) + _program()
    health = ", ".join(f"{name} {url}" for name, url in running.health.items())
    return [
        f"ready in {took_s:.0f} s: orders at {running.http}, Kafka at {running.kafka}, users at {running.users}",
        f"health: {health}; metrics: /metrics there",
        "Try in another terminal:",
        f"  {prefix} create order-1 --user dana --currency EUR --line mug-blue:2:1250",
        f"  {prefix} pay order-1 --payment-id payment-1 --amount 2500 --currency EUR",
        f"  {prefix} timeline order-1",
        f"  {prefix} list",
        f"  curl {running.http}/v1/orders/order-1",
        "Ctrl-C ends all of it; the data stays.",
    ]


def _program() -> str:
    """Give the command as another terminal in this folder can type it."""
    if shutil.which("order-service") is not None:
        return "order-service"
    called = Path(sys.argv[0])
    if called.name != "order-service":
        return "order-service"
    return str(called.relative_to(Path.cwd())) if called.is_relative_to(Path.cwd()) else str(called)


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
    """Find a free port for each that is 0: all children must be told the same one."""
    fields = ("kafka_port", "admin_port", "users_port", "http_port")
    return settings.model_copy(update={field: free_port() for field in fields if getattr(settings, field) == 0})


def _check_ports(settings: Settings, *, has_kafka: bool, has_stub: bool) -> None:
    """Look before anything is started, so that a used port is one line and not a child's long end."""
    ports = {"ORDERS_HTTP_PORT": settings.http_port, "ORDERS_ADMIN_PORT": settings.admin_port}
    if has_kafka:
        ports["ORDERS_KAFKA_PORT"] = settings.kafka_port
    if has_stub:
        ports["ORDERS_USERS_PORT"] = settings.users_port
    if len(set(ports.values())) < len(ports):
        raise PortTakenError(f"{', '.join(sorted(ports))} must be different ports")
    for name, port in ports.items():
        if is_taken(port):
            raise PortTakenError(f"port {port} is taken: end what listens there, or set {name} to another one")


def _kafka(choice: Local, settings: Settings, say: Say) -> Child:
    _check_data_dir(settings.data_dir)
    say("Kafka is made ready ...")
    try:
        return local_broker(choice, settings).child()
    except OSError as error:
        place = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        raise EmbeddedError(f"Kafka cannot be made ready ({place}): set ORDERS_DATA_DIR, or XDG_CACHE_HOME") from error


def _check_data_dir(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        line = f"the folder {directory} cannot be written ({error.strerror}): set ORDERS_DATA_DIR to another place"
        raise EmbeddedError(line) from error


def _users(settings: Settings, environment: Mapping[str, str]) -> Child:
    return Child(
        name="users",
        command=(*OURS, "users"),
        env=environment,
        ready=lambda: _answers(settings.host, settings.users_port, "/mode"),
    )


def _worker(settings: Settings, environment: Mapping[str, str]) -> Child:
    return Child(
        name="worker",
        command=(*OURS, "worker", "--create-topics"),
        env=environment,
        ready=lambda: has_started(settings.host, settings.admin_port),
        ready_within_s=120.0,
    )


def _with_admin_port(name: str, port: int, settings: Settings, environment: Mapping[str, str]) -> Child:
    """Start one that waits until all views are built; its admin port is another: ORDERS_ADMIN_PORT is the worker's."""
    return Child(
        name=name,
        command=(*OURS, name),
        env={**environment, "ORDERS_ADMIN_PORT": str(port)},
        ready=lambda: has_started(settings.host, port),
        ready_within_s=3600.0,
    )


def _environment(settings: Settings, servers: str, user_service_url: str, *, is_local: bool) -> dict[str, str]:
    """Tell the children what was decided here; the rest they read as we did."""
    told = {
        "KAFKA_BOOTSTRAP_SERVERS": servers,
        "ORDERS_KAFKA": "",
        "ORDERS_PARTITIONS": str(settings.partitions),
        "ORDERS_ADMIN_PORT": str(settings.admin_port),
        "ORDERS_USERS_PORT": str(settings.users_port),
        "ORDERS_HTTP_PORT": str(settings.http_port),
        "ORDERS_LOG": settings.log or ("console" if sys.stderr.isatty() else "json"),
        "USER_SERVICE_URL": user_service_url,
    }
    if is_local and not settings.instance_id:
        # Under its old name a restarted worker has its partitions back at once, not when its session has expired.
        told["ORDERS_INSTANCE_ID"] = "up-1"
    return dict(os.environ) | told


def _announced(child: Child, say: Say) -> Child:
    return structs.replace(child, ready=_Announcer(child, say))


class _Announcer:
    """Asks whether a child has started, and says so when it begins to start and when it has."""

    def __init__(self, child: Child, say: Say) -> None:
        self._name = NAMES[child.name]
        self._ask = child.ready or (lambda: True)
        self._say = say
        self._is_starting = False

    def __call__(self) -> bool:
        if not self._is_starting:
            self._is_starting = True
            self._say(f"{self._name} is starting ...")
        if not self._ask():
            return False
        self._is_starting = False
        self._say(f"{self._name} has started")
        return True


def has_started(host: str, port: int) -> bool:
    """Return whether the process with this admin port does its work, perhaps with parked lanes or stopped views."""
    status, body = _get(host, port, "/health/ready")
    if status != HTTPStatus.SERVICE_UNAVAILABLE:
        return status == HTTPStatus.OK
    try:
        return json.loads(body)["starting"] is False
    except (ValueError, KeyError, TypeError):  # another program has this port
        return False


def _answers(host: str, port: int, path: str) -> bool:
    return _get(host, port, path)[0] == 200


def _get(host: str, port: int, path: str) -> tuple[int, bytes]:
    """Return status and body of an answer; status 0 if there is none."""
    connection = http.client.HTTPConnection(EVERYWHERE.get(host, host), port, timeout=1.0)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def _without_user(url: str) -> str:
    """Take name and password out of a URL that is shown."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _url(host: str, port: int) -> str:
    host = EVERYWHERE.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
