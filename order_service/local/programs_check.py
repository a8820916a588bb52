"""The check of the programs that run a local Kafka, for `order-service doctor`."""

from collections.abc import Callable

from order_service.errors import EmbeddedError
from order_service.local.kafka import JAVA_MIN, VERSION, Choice, Docker, Embedded, choose_kafka
from order_service.operations.doctor.checks.check import Result, ok, problem, sentence
from order_service.runtime.daemon_thread import in_daemon_thread
from order_service.settings import Settings


async def check_programs(settings: Settings, choose: Callable[[Settings], Choice] = choose_kafka) -> list[Result]:
    """Check that Java and Maven, or Docker, can run the local Kafka."""
    local = settings.model_copy(update={"kafka_bootstrap_servers": ""})
    try:
        choice = await in_daemon_thread(lambda: choose(local))
    except EmbeddedError as error:
        return [problem(sentence(str(error)), f"Install Java {JAVA_MIN} and Maven, or start Docker.")]
    return [judge_choice(choice)]


def judge_choice(choice: Choice) -> Result:
    """Return which program runs the local Kafka."""
    match choice:
        case Embedded():
            return ok(f"Java {JAVA_MIN} or newer and Maven run Kafka {VERSION}.")
        case Docker():
            return ok(f"The Docker engine answers, and runs Kafka {VERSION}.")
        case _:
            return ok("An external Kafka is used.")
