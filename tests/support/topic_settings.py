"""Reads and changes the settings of topics, also by the lines that `order-service topics check` prints."""

import subprocess
from pathlib import Path

from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from order_service.local.kafka import Embedded, cache_dir, choose_kafka, fetch_jars
from order_service.settings import Settings
from tests.support.quick_kafka import archive_option
from tests.support.service import PATIENCE_S, until, vars_of


def set_config(service, topic, **values):
    """Set some settings of a topic, underscores for dots."""
    entries = [
        ConfigEntry(key.replace("_", "."), value, incremental_operation=AlterConfigOpType.SET)
        for key, value in values.items()
    ]
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
    for future in service.kafka.incremental_alter_configs([resource]).values():
        future.result(30)
    field = next(field for field, name in vars_of(service.names).items() if name == topic)
    until(
        lambda: all(configs(service)[field][entry.name].value == entry.value for entry in entries),
        "the broker has the settings from its controller",
    )


def configs(service):
    """Return the settings of each topic, by its field."""
    resources = {ConfigResource(ResourceType.TOPIC, name): field for field, name in vars_of(service.names).items()}
    return {
        resources[resource]: future.result(30)
        for resource, future in service.kafka.describe_configs(list(resources)).items()
    }


def run_lines(lines, directory):
    """Run shell lines with Kafka's own tools, as an operator does."""
    choice = choose_kafka(Settings(kafka="embedded"))
    assert isinstance(choice, Embedded)
    java = f"{choice.java} {archive_option(choice)} -cp '{fetch_jars(choice.mvn, cache_dir())}/*'"
    tools = {
        "kafka-configs": "kafka.admin.ConfigCommand",
        "kafka-reassign-partitions": "org.apache.kafka.tools.reassign.ReassignPartitionsCommand",
    }
    script = Path(directory, "mend.sh")
    functions = [f'{name}() {{ {java} {main} "$@"; }}' for name, main in tools.items()]
    script.write_text("\n".join(["set -e", *functions, *lines]))
    done = subprocess.run(["bash", script], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
