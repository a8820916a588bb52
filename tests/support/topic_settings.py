"""Reads the settings of topics, and changes them by the lines that `order-service topics` prints."""

import subprocess
from pathlib import Path

from order_service.local.kafka import Embedded, cache_dir, choose_kafka, fetch_jars
from order_service.settings import Settings
from tests.support.quick_kafka import archive_option
from tests.support.service import PATIENCE_S, vars_of


def configs(service):
    """Return the settings of each topic, by its field."""
    return {field: service.config_of(name) for field, name in vars_of(service.names).items()}


def run_lines(lines, directory):
    """Run shell lines with Kafka's own tools, as an operator does."""
    choice = choose_kafka(Settings(kafka="embedded"))
    assert isinstance(choice, Embedded)
    java = f"{choice.java} {archive_option(choice)} -cp '{fetch_jars(choice.mvn, cache_dir())}/*'"
    tools = {
        "kafka-topics": "org.apache.kafka.tools.TopicCommand",
        "kafka-configs": "kafka.admin.ConfigCommand",
        "kafka-reassign-partitions": "org.apache.kafka.tools.reassign.ReassignPartitionsCommand",
    }
    script = Path(directory, "mend.sh")
    functions = [f'{name}() {{ {java} {main} "$@"; }}' for name, main in tools.items()]
    script.write_text("\n".join(["set -e", *functions, *lines]))
    done = subprocess.run(["bash", script], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
