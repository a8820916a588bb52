from __future__ import annotations

import re
import shlex
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import order_service
from order_service.cli.environment import LOCAL_PARTITIONS
from order_service.errors import EmbeddedError
from order_service.local.broker import HOST, Broker, free_port, is_taken
from order_service.local.kafka import (
    IMAGE,
    POM,
    PROPERTIES,
    VERSION,
    Docker,
    Embedded,
    External,
    choose_kafka,
    container_env,
    docker_broker,
    fetch_jars,
    local_broker,
    parse_java_version,
    remove_left_container,
)
from order_service.runtime.supervisor import open_log
from order_service.settings import Settings

ROOT = Path(order_service.__file__).parent.parent
DEADLINE_S = 60.0
EMBEDDED = Embedded("/bin/java", "/bin/mvn")
DOCKER = Docker("/bin/docker")


def machine(*programs, java=17, engine=True):
    """The arguments by which `choose_kafka` sees a machine that has these programs."""
    return {
        "which": lambda name: f"/bin/{name}" if name in programs else None,
        "java_version": lambda _: java,
        "engine_answers": lambda _: engine,
    }


@pytest.mark.parametrize(
    ("settings", "has", "choice"),
    [
        pytest.param({"kafka_bootstrap_servers": "k:1"}, machine(), External("k:1"), id="a named one needs nothing"),
        pytest.param({"kafka_bootstrap_servers": "k:1"}, machine("java", "mvn"), External("k:1"), id="and goes first"),
        pytest.param({}, machine("java", "mvn", "docker"), EMBEDDED, id="Maven goes before Docker"),
        pytest.param({}, machine("java", "mvn", java=25), EMBEDDED, id="a newer Java does"),
        pytest.param({}, machine("java", "docker"), DOCKER, id="no Maven: Docker"),
        pytest.param({}, machine("mvn", "docker"), DOCKER, id="no Java: Docker"),
        pytest.param({}, machine("java", "mvn", "docker", java=11), DOCKER, id="Java is too old: Docker"),
        pytest.param({}, machine("java", "mvn", "docker", java=None), DOCKER, id="Java is a mere stub: Docker"),
        pytest.param({"kafka": "docker"}, machine("java", "mvn", "docker"), DOCKER, id="Docker if forced"),
        pytest.param(
            {"kafka": "embedded", "kafka_bootstrap_servers": "k:1"},
            machine("java", "mvn"),
            EMBEDDED,
            id="a forced one leaves the named one alone",
        ),
    ],
)
def test_which_kafka(settings, has, choice):
    assert choose_kafka(Settings(**{"kafka": "", "kafka_bootstrap_servers": "", **settings}), **has) == choice


@pytest.mark.parametrize(
    ("kafka", "has", "line"),
    [
        pytest.param(
            "",
            machine(),
            "no Kafka: install Java 17 or newer and Maven; or install Docker; or set KAFKA_BOOTSTRAP_SERVERS",
            id="nothing is there",
        ),
        pytest.param(
            "",
            machine("java", "docker", engine=False),
            "no Kafka: install Maven (no mvn on the PATH); or start the Docker engine (it does not answer);"
            " or set KAFKA_BOOTSTRAP_SERVERS",
            id="the engine sleeps",
        ),
        pytest.param(
            "embedded",
            machine("java", "mvn", "docker", java=11),
            "ORDERS_KAFKA=embedded: install Java 17 or newer (found Java 11)",
            id="forced, and Java is old",
        ),
        pytest.param(
            "embedded",
            machine("java", "docker"),
            "ORDERS_KAFKA=embedded: install Maven (no mvn on the PATH)",
            id="forced, and no Maven",
        ),
        pytest.param("docker", machine("java", "mvn"), "ORDERS_KAFKA=docker: install Docker", id="forced, no Docker"),
        pytest.param(
            "docker",
            machine("docker", engine=False),
            "ORDERS_KAFKA=docker: start the Docker engine (it does not answer)",
            id="forced, and the engine sleeps",
        ),
    ],
)
def test_what_is_missing_is_one_line(kafka, has, line):
    with pytest.raises(EmbeddedError) as error:
        choose_kafka(Settings(kafka=kafka, kafka_bootstrap_servers=""), **has)
    assert str(error.value) == line


@pytest.mark.parametrize(
    ("text", "version"),
    [
        pytest.param('openjdk version "17.0.15" 2025-04-15', 17, id="OpenJDK"),
        pytest.param('java version "25" 2025-09-16 LTS', 25, id="a first release"),
        pytest.param('java version "1.8.0_402"', 8, id="the old form"),
        pytest.param('Picked up JAVA_TOOL_OPTIONS: -Xmx1g\nopenjdk version "21.0.2"', 21, id="after other lines"),
        pytest.param("The operation couldn't be completed.", None, id="the stub of macOS"),
    ],
)
def test_versions_of_java(text, version):
    assert parse_java_version(text) == version


def script(path, *lines):
    path.write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
    path.chmod(0o755)
    return str(path)


def make_mvn(tmp_path, *then):
    """A Maven that counts its runs and leaves one jar."""
    count = shlex.quote(str(tmp_path / "runs"))
    out = 'for word; do case "$word" in -DoutputDirectory=*) out="${word#*=}";; esac; done'
    return script(tmp_path / "mvn", f"echo run >> {count}", out, *then, 'mkdir "$out"; touch "$out/kafka.jar"')


def runs(tmp_path):
    return (tmp_path / "runs").read_text().count("run")


def test_jars_are_fetched_once(tmp_path):
    mvn = make_mvn(tmp_path)
    first = fetch_jars(mvn, tmp_path / "cache")
    assert fetch_jars(mvn, tmp_path / "cache") == first
    assert [jar.name for jar in first.iterdir()] == ["kafka.jar"]
    assert VERSION in first.name
    assert runs(tmp_path) == 1


def test_two_runs_at_once_fetch_once(tmp_path):
    # Each run would wait for a second one, for a moment: with a lock none comes.
    count = shlex.quote(str(tmp_path / "runs"))
    mvn = make_mvn(tmp_path, f'for i in 1 2 3 4 5; do [ "$(wc -l < {count})" -gt 1 ] || sleep 0.05; done')
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: fetch_jars(mvn, tmp_path / "cache"), range(4)))
    assert len(set(folders)) == 1
    assert runs(tmp_path) == 1


def test_other_jars_are_another_folder(tmp_path):
    mvn = make_mvn(tmp_path)
    pom = tmp_path / "pom.xml"
    pom.write_text(POM.read_text() + "<!-- another -->")
    assert fetch_jars(mvn, tmp_path, pom) != fetch_jars(mvn, tmp_path)


def test_a_maven_that_fails_is_one_line_and_leaves_nothing(tmp_path):
    said = r'printf "\033[0m\033[0m[ERROR] no route\n[ERROR] \n[ERROR] x\n"'  # as Maven begins without a terminal
    mvn = make_mvn(tmp_path, f'mkdir "$out"; touch "$out/half.jar"; {said}; exit 1')
    with pytest.raises(EmbeddedError, match=rf"^Maven could not fetch Kafka {VERSION}: no route$"):
        fetch_jars(mvn, tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["fetch.lock"]


def test_the_version_is_the_poms():
    assert POM.read_text().count(f"<version>{VERSION}</version>") == 2


def test_a_container_calls_itself_by_another_listener_than_the_host_does():
    env = container_env(12345)
    assert env["KAFKA_ADVERTISED_LISTENERS"] == "HOST://127.0.0.1:12345,INTERNAL://localhost:29092"
    assert env["KAFKA_INTER_BROKER_LISTENER_NAME"] == "INTERNAL"
    assert env["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"


def test_the_compose_file_sets_what_the_embedded_node_sets():
    compose = (ROOT / "docker-compose.yml").read_text()
    same = [
        line for line in container_env(1) if PROPERTIES.keys() & {line.removeprefix("KAFKA_").lower().replace("_", ".")}
    ]
    assert len(same) == len(PROPERTIES)
    for name in same:
        assert f'      {name}: "{container_env(1)[name]}"\n' in compose
    assert f"image: {IMAGE}\n" in compose


def test_the_compose_file_and_the_command_line_have_the_same_partition_count():
    compose = (ROOT / "docker-compose.yml").read_text()
    assert f'    ORDERS_PARTITIONS: "${{ORDERS_PARTITIONS:-{LOCAL_PARTITIONS}}}"\n' in compose


def test_the_compose_file_publishes_on_loopback_only():
    compose = (ROOT / "docker-compose.yml").read_text()
    published = re.findall(r"ports:\n((?: +- .*\n)+)", compose)
    assert len(published) == 5
    assert all(line.strip().startswith('- "127.0.0.1:') for lines in published for line in lines.splitlines())


def test_a_container_is_published_on_loopback_only(tmp_path):
    docker = script(tmp_path / "docker", "exit 0")
    broker = local_broker(Docker(docker), Settings(data_dir=tmp_path, kafka_port=12345))
    assert "127.0.0.1:12345:9092" in broker.command
    assert broker.command[-1] == f"apache/kafka:{VERSION}"


def make_docker(tmp_path):
    """A docker client that notes how it is called; `ps` prints what is in the file `left`."""
    calls, left = shlex.quote(str(tmp_path / "calls")), shlex.quote(str(tmp_path / "left"))
    lines = [f'echo "$@" >> {calls}', f'case "$1" in ps) cat {left};; rm) : > {left};; esac']
    Path(tmp_path, "left").write_text("abc\n")
    return Docker(script(tmp_path / "docker", *lines))


def test_a_container_that_was_left_is_removed_before_the_port_is_checked_and_after_the_end(tmp_path):
    broker = docker_broker(make_docker(tmp_path), tmp_path, free_port())
    child = broker.child()
    assert (tmp_path / "left").read_text() == ""
    (tmp_path / "left").write_text("def\n")
    assert child.clean is not None
    child.clean()
    called = (tmp_path / "calls").read_text().splitlines()
    assert [call for call in called if call.startswith("rm ")] == [
        f"rm --force --volumes {name}" for name in ("abc", "def")
    ]
    assert f"label=order-service.directory={tmp_path}" in called[0]
    assert f"--label order-service.directory={tmp_path}" in " ".join(broker.command)


def test_the_container_of_a_run_that_is_alive_is_not_removed(tmp_path):
    docker = make_docker(tmp_path)
    with open_log(tmp_path / "kafka.log"), pytest.raises(EmbeddedError, match="another run uses"):
        remove_left_container(docker, tmp_path, 9092)
    assert (tmp_path / "left").read_text() == "abc\n"


def test_a_docker_engine_that_hangs_is_one_line(tmp_path):
    with pytest.raises(EmbeddedError, match=r"^the Docker engine does not answer: "):
        remove_left_container(Docker(str(tmp_path / "missing")), tmp_path, 9092)


def test_a_taken_port_is_one_line_that_names_the_setting(tmp_path):
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(EmbeddedError, match=rf"^port {port} is taken: .* ORDERS_KAFKA_PORT"):
            Broker(["true"], tmp_path, port).start()


@pytest.mark.parametrize(
    ("says", "hint"),
    [
        pytest.param("x ERROR kafka.Kafka - it is broken", "it is broken", id="an error of the log"),
        pytest.param("java.net.BindException: Address already in use", "set ORDERS_KAFKA_PORT", id="a port is taken"),
        pytest.param("", "it wrote no output", id="silence"),
        pytest.param(
            "docker: Error response from daemon: no space left on device\n\nRun 'docker run --help' for more",
            "no space left on device",
            id="docker adds how to get help",
        ),
    ],
)
def test_a_broker_that_ends_at_once_says_why(tmp_path, says, hint):
    broker = Broker(["sh", "-c", f"echo {shlex.quote(says)}; exit 1"], tmp_path, free_port())
    with pytest.raises(EmbeddedError, match=rf"^Kafka exited while starting: .*{hint}.*kafka\.log\)$"):
        broker.start()


def test_a_broker_that_does_not_answer_in_time_is_ended(tmp_path):
    broker = Broker(["sh", "-c", "echo $$ > pid; exec sleep 600"], tmp_path, free_port(), start_within_s=3.0)
    with pytest.raises(EmbeddedError, match=r"^Kafka did not answer within 3 s"):
        broker.start()
    assert not is_alive(int((tmp_path / "pid").read_text()))


def test_free_ports_are_none_that_outgoing_connections_get():
    port = free_port()
    assert port < 32_768
    assert not is_taken(port)


def is_alive(pid):
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return bool(state.stdout.strip()) and not state.stdout.strip().startswith("Z")
