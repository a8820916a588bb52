"""The fixtures of all tests, and how pytest-xdist distributes the files."""

import gc
import os
from collections import Counter, deque
from pathlib import Path

import pytest
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

from order_service.local import broker
from order_service.wire.schemas.catalogue import SCHEMAS
from tests.support import forking
from tests.support.kafka import running_kafka
from tests.support.service import Service, StubThread
from tests.support.shared_kafka import SharedKafka, ask_for_kafka
from tests.support.shop import Shop, running_shop

# Many brokers live for seconds: their compiler and their collector would take longer than what they do for us.
os.environ.setdefault("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")

ROOT = Path(__file__).parent
UNIT = ROOT / "tests" / "unit"
KAFKA = "bootstrap_servers"
"""The fixture with the bootstrap servers of the Kafka that all tests share; topics differ by `ORDERS_TOPIC_PREFIX`."""
SHARED_KAFKA = pytest.StashKey[SharedKafka]()

RUNNER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
RUNNERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
broker._ports = deque(port for port in broker._ports if port % RUNNERS == RUNNER % RUNNERS)
"""Each process of pytest has ports of its own: one that was found free is taken only a second later."""

LONG = (
    "tests/broker/operations/test_rebuild.py",
    "chaos/tests/test_planted.py",
    "chaos/tests/test_chaos.py",
    "tests/broker/group/test_group.py",
    "tests/broker/operations/test_dead_letters.py",
    "tests/broker/cluster/",
    "tests/broker/operations/",
    "tests/broker/registry/",
    "tests/broker/web/test_schemathesis.py",
    "tests/broker/claims/test_claim_damage.py",
    "tests/broker/worker/test_failpoints.py",
    "tests/end_to_end/alerts/",
    "tests/end_to_end/test_documents.py",
    "tests/end_to_end/examples/",
    "tests/end_to_end/test_up.py",
    "tests/broker/cli/test_commands.py",
    "tests/broker/claims/",
    "tests/broker/kafka/test_kafka_away.py",
    "tests/broker/worker/",
    "tests/end_to_end/evolution/test_evolution.py",
    "tests/broker/group/",
    "tests/end_to_end/browser/test_try_it_out.py",
    "tests/broker/kafka/test_security.py",
    "tests/end_to_end/browser/test_orders_page.py",
    "tests/broker/web/test_hostile.py",
    "tests/broker/views/test_process.py",
    "chaos/tests/test_cluster.py",
    "tests/end_to_end/asyncapi/",
)
"""The files and folders that take longest begin first, and unit tests last: else one long file ends alone."""

ONE_PROCESS = ("tests/broker/cluster/", "tests/broker/registry/")
"""Folders whose files share a cluster or a registry, and therefore a process."""

LOG_CHARS = 4000
"""How many characters of each process's log are shown for a failed test."""


class FakeClock:
    """A clock that stands still until a test moves it."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


settings.register_profile("local", deadline=None, max_examples=150)
settings.register_profile("ci", deadline=None, max_examples=60, derandomize=True, database=None)  # always the same
settings.load_profile("ci" if os.environ.get("CI") else "local")


def _rank(item):
    is_unit = item.nodeid.startswith("tests/unit/")
    return next((rank for rank, name in enumerate(LONG) if item.nodeid.startswith(name)), len(LONG) + is_unit)


def pytest_collection_modifyitems(items):
    """Order the files, and fail the run if tests share a node id: pytest-xdist runs only one of them."""
    items.sort(key=_rank)
    if wrong := [item.nodeid for item in items if item.path.is_relative_to(UNIT) and KAFKA in item.fixturenames]:
        raise pytest.UsageError(f"tests in {UNIT} may not need Kafka: {', '.join(wrong)}")
    shared = [node_id for node_id, count in Counter(item.nodeid for item in items).items() if count > 1]
    if shared:
        raise pytest.UsageError(f"tests share a node id: {', '.join(shared)}")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    """Pass a process of pytest-xdist the address at which it can ask for Kafka."""
    stash = node.config.stash
    if SHARED_KAFKA not in stash:
        stash[SHARED_KAFKA] = SharedKafka(node.config._tmp_path_factory.mktemp("kafka")).start()
    node.workerinput[KAFKA] = stash[SHARED_KAFKA].address


class FilesTogether(LoadFileScheduling):  # type: ignore[misc] # it has no types
    """Gives each file, and each folder of `ONE_PROCESS`, to one process."""

    def _split_scope(self, nodeid):
        file = super()._split_scope(nodeid)
        return next((folder for folder in ONE_PROCESS if file.startswith(folder)), file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Distribute files, in the order in which they were collected."""
    config.option.loadscopereorder = False
    return FilesTogether(config, log)


def pytest_unconfigure(config):
    """Stop the Kafka of all processes."""
    if shared := config.stash.get(SHARED_KAFKA, None):
        shared.stop()


def pytest_sessionstart():
    """Fork our processes from one that has imported all."""
    if forking.IS_POSSIBLE:
        forking.template = forking.Template()


def pytest_sessionfinish():
    """End what forks."""
    if forking.template is not None:
        forking.template.stop()


@pytest.fixture(autouse=True)
def released_schemas():
    """Forget the ids that the process of the tests has learned from a registry: other tests know the released ones."""
    by_id, newest = dict(SCHEMAS.by_id), dict(SCHEMAS.newest)
    yield
    SCHEMAS.by_id.clear()
    SCHEMAS.by_id.update(by_id)
    SCHEMAS.newest.clear()
    SCHEMAS.newest.update(newest)


gc.disable()
"""Garbage is collected in tests only. An asyncio future logs its error when it is collected; in Python before 3.11.9
(gh-106905) the traceback of that, parsed while pytest parses source, ends the whole run with a SystemError."""


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call():
    """Collect garbage while a test runs."""
    gc.enable()
    try:
        return (yield)
    finally:
        gc.disable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Show the end of what each process of a failed test has logged."""
    report = yield
    if report.failed:
        for used in item.funcargs.values():
            service = used.service if isinstance(used, Shop) else used
            for process in service.workers if isinstance(service, Service) else []:
                title = f"{process.name} (exit code {process.process.poll()})"
                report.sections.append((title, process.log()[-LOG_CHARS:]))
    return report


@pytest.fixture(scope="session")
def bootstrap_servers(request, tmp_path_factory):
    if address := getattr(request.config, "workerinput", {}).get(KAFKA):
        yield ask_for_kafka(address)
        return
    with running_kafka(tmp_path_factory.mktemp("kafka")) as servers:
        yield servers


@pytest.fixture(scope="session")
def users():
    with StubThread() as stub:
        yield stub


@pytest.fixture
def service(bootstrap_servers, tmp_path, users):
    """Provide a service of its own to each test, on the broker that all share."""
    with Service(bootstrap_servers, tmp_path, users) as made:
        yield made


@pytest.fixture(scope="module")
def shop(bootstrap_servers, tmp_path_factory, users):
    """Provide one shop to all tests of a file: each has orders of its own."""
    with running_shop(bootstrap_servers, tmp_path_factory.mktemp("shop"), users) as running:
        yield running


@pytest.fixture(scope="module")
def http(shop):
    """Return a caller of an HTTP server without authentication, on loopback: it may do everything."""
    return shop.serve()[0]


@pytest.fixture
def clock():
    return FakeClock()
