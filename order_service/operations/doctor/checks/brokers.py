"""Checks of the Kafka cluster: its brokers and their version, and the topics with their settings and replicas."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Final

from order_service.kafka.connection import NO_LEADER, Admin, ask_admin, connection
from order_service.kafka.rights_requests import metadata_version
from order_service.kafka.topics import Fault, compare_topics, fix_lines
from order_service.operations.doctor.checks.check import Result, counted, numbers, ok, problem, sentence, warning
from order_service.settings import Settings

RELEASES: Final = ((30, "4.3 or newer"), (28, "4.2"), (26, "4.1"), (22, "4.0"), (21, "3.9"), (1, "3.8 or older"))
"""The lowest `metadata.version` of each release. Source: Kafka's `MetadataVersion`."""
LEAVES_TRANSACTIONS_OPEN: Final = RELEASES[0][0]
"""The lowest version whose brokers can leave a transaction open: see decision 8."""
RETRY_S: Final = 5.0
RUNBOOK: Final = "docs/operations/hanging-transactions.md"


async def check_brokers(settings: Settings) -> list[Result]:
    """Check that the cluster answers, and its version. Raises KafkaAwayError if it does not answer."""

    async def ask(admin: Admin) -> tuple[int, int | None]:
        return len((await admin.describe_cluster())["brokers"]), await metadata_version(admin)

    count, version = await ask_admin(settings, ask, patience_s=0.0)
    return [judge_brokers(connection(settings)["bootstrap_servers"], count, version)]


def judge_brokers(servers: str, count: int, version: int | None) -> Result:
    """Return the result for a number of brokers with a `metadata.version`, None if they do not report it."""
    text = f"{counted(count, 'broker')} at {servers}, Kafka {release_of(version)}."
    if version is not None and version >= LEAVES_TRANSACTIONS_OPEN and count < 3:
        risk = "After a kill of the only broker with a partition, this version can leave a transaction open."
        return warning(f"{text} {risk}", f"Use Kafka 4.2 or three brokers, and know {RUNBOOK}.")
    return ok(text)


def release_of(version: int | None) -> str:
    """Return the release that supports a `metadata.version` at most."""
    if version is None:
        return "of an unknown version"
    return next(release for lowest, release in RELEASES if version >= lowest)


async def check_topics(settings: Settings) -> list[Result]:
    """Check the settings, the leaders and the replicas of the topics."""

    async def ask(admin: Admin) -> list[Result]:
        compared = await compare_topics(admin, settings)
        results = [problem(sentence(fault.text), fix_of(fault, compared.faults, settings)) for fault in compared.faults]
        results += [warning(sentence(risk.text), risk.line or risk.advice) for risk in compared.risks]
        return results + judge_replicas(await admin.describe_topics(sorted(compared.in_sync)), compared.in_sync)

    expected = f"All topics are as expected, with {settings.partitions} partitions each."
    return await ask_admin(settings, ask, patience_s=RETRY_S) or [ok(expected)]


def fix_of(fault: Fault, faults: Iterable[Fault], settings: Settings) -> str:
    """Return the shell lines that fix a fault. New replicas are one plan for all topics: Kafka takes one at a time."""
    together = [other for other in faults if other.moves] if fault.moves else [fault]
    return "\n".join(fix_lines(together, settings))


def judge_replicas(topics: Iterable[Mapping[str, Any]], in_sync: Mapping[str, int]) -> list[Result]:
    """Return the partitions that have no leader, too few in-sync replicas for a write, or fewer than they could have.

    `in_sync` has the `min.insync.replicas` of each topic.
    """
    results = []
    for topic in topics:
        name, by_state = topic["topic"], defaultdict(list)
        nodes: set[int] = set()
        for partition in topic["partitions"]:
            away = set(partition["replicas"]) - set(partition["isr"])
            if partition["leader"] == NO_LEADER:
                state = "no leader"
            elif len(partition["isr"]) < in_sync[name]:
                state = f"fewer than {in_sync[name]} replicas in sync, so nothing can be written"
            elif away:
                state = "a replica that is not in sync"
            else:
                continue
            by_state[state].append(partition["partition"])
            nodes |= away or set(partition["replicas"])
        fix = f"Start the brokers that have a replica, or wait for them: {', '.join(map(str, sorted(nodes)))}."
        for state, partitions in sorted(by_state.items()):
            verb = "has" if len(partitions) == 1 else "have"
            text = sentence(f"{numbers(partitions)} of {name} {verb} {state}")
            results.append((warning if state.startswith("a replica") else problem)(text, fix))
    return results
