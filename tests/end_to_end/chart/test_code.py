"""The chart means what the code means: settings, ports, probes, time to end, topics, rights, metrics and documents."""

import re
import tomllib
from http.client import HTTPConnection
from itertools import pairwise
from pathlib import Path

import promql_parser
import pytest
import yaml

from order_service.cli import app as cli
from order_service.contracts.chart_files import LOCAL, SET_BY_CHART, processes
from order_service.contracts.metrics_page import NO_ALERT, USES
from order_service.kafka.topic_formats import TopicFormat, format_topics
from order_service.kafka.topics import topic_configs, topic_names, topic_specs
from order_service.local.broker import free_port
from order_service.operations.doctor.checks.rights import OPERATIONS, needs
from order_service.runtime import admin, signals
from order_service.runtime.admin import AdminServer
from order_service.settings import Settings, variable
from order_service.web import process as web_process
from order_service.worker import transactions, turn
from order_service.worker.faust import consumer
from order_service.worker.membership import Membership
from order_service.worker.processes import parent
from tests.support.chart import (
    CHART,
    PROCESSES,
    VALUE_SETS,
    container,
    environment,
    flattened,
    of_kind,
    pods,
    rendered,
    values,
)
from tests.support.promql import TARGET_LABELS, exposed, selectors_of
from tests.support.service import ROOT

NAMES = {variable(field): field for field in Settings.model_fields}
USED_BY = {
    variable(field): processes(schema["used_by"])
    for field, schema in Settings.model_json_schema(by_alias=False)["properties"].items()
}
FOLDER = "/etc/order-service"
DOCS = ROOT / "docs"


def setting_of(name):
    """Return the setting of a variable: `…_FILE` of a secret is that of the secret."""
    return name if name in NAMES else name.removesuffix("_FILE")


@pytest.mark.parametrize("name", VALUE_SETS)
def test_every_variable_is_a_setting_of_its_process(name):
    for process, pod in pods(rendered(name)).items():
        ours = [variable for variable in environment(pod) if variable.startswith("ORDERS_")]
        assert [variable for variable in ours if process not in USED_BY[setting_of(variable)]] == []


@pytest.mark.parametrize("name", VALUE_SETS)
def test_every_pod_has_settings_that_its_process_accepts(name, tmp_path, monkeypatch):
    for process, pod in pods(rendered(name)).items():
        with monkeypatch.context() as patch:
            for variable in NAMES:
                patch.delenv(variable, raising=False)
            for variable, value in environment(pod).items():
                if value.startswith(f"{FOLDER}/"):
                    file = tmp_path / Path(value).name
                    file.write_text("secret")
                    patch.setenv(variable, str(file))
                else:
                    patch.setenv(variable, value)
            settings = Settings()
        if process == "worker":
            assert settings.instance_id == "metadata.name"


@pytest.mark.parametrize("name", VALUE_SETS)
def test_every_file_that_a_variable_names_is_mounted(name):
    for pod in pods(rendered(name)).values():
        sources = [
            source
            for volume in pod["spec"]["volumes"]
            if volume["name"] == "settings"
            for source in volume["projected"]["sources"]
        ]
        mounted = []
        for source in sources:
            [(kind, reference)] = source.items()
            paths = (
                [reference["path"]] if kind == "serviceAccountToken" else [item["path"] for item in reference["items"]]
            )
            mounted += [f"{FOLDER}/{path}" for path in paths]
        assert sorted(mounted) == sorted(value for value in environment(pod).values() if value.startswith(FOLDER))
        mounts = [mount for mount in container(pod)["volumeMounts"] if mount["name"] == "settings"]
        assert mounts == ([{"name": "settings", "mountPath": FOLDER, "readOnly": True}] if sources else [])


def test_every_setting_of_the_processes_can_be_set(tmp_path):
    """Except those of a local Kafka. What the chart sets itself is refused: see test_rendered.py."""
    known = yaml.safe_load((CHART / "files" / "settings.yaml").read_text())
    assert {NAMES[name] for name, used_by in USED_BY.items() if used_by} - LOCAL == {NAMES[name] for name in known}
    own = {NAMES[name] for name, setting in known.items() if setting["kind"] == "chart"}
    assert {field for field in own if not field.endswith("_dir")} == SET_BY_CHART
    wanted: dict[str, dict[str, object]] = {"settings": {}, "secrets": {}, "files": {}}
    for name, setting in known.items():
        match setting["kind"]:
            case "value":
                wanted["settings"][name] = f"value of {name}"
            case "secret":
                wanted["secrets"][name] = {"secret": "a", "key": name}
            case "file":
                wanted["files"][name] = {"configMap": "b", "key": name}
    file = tmp_path / "all.yaml"
    file.write_text(yaml.safe_dump(wanted))
    for process, pod in pods(rendered("minimal", "--values", str(file))).items():
        variables = environment(pod)
        for name, setting in known.items():
            expected = {
                "value": {name: f"value of {name}"},
                "secret": {f"{name}_FILE": f"{FOLDER}/{name}"},
                "file": {name: f"{FOLDER}/{name}"},
            }.get(setting["kind"], {})
            if process in setting["usedBy"]:
                assert expected.items() <= variables.items()
            else:
                assert not expected.keys() & variables.keys()


def test_ports_are_the_defaults_of_the_settings():
    defaults = {name: NAMES[name] for name in ("ORDERS_ADMIN_PORT", "ORDERS_HTTP_PORT")}
    admin_port, http_port = (Settings.model_fields[field].default for field in defaults.values())
    for process, pod in pods(rendered("minimal")).items():
        ports = {port["name"]: port["containerPort"] for port in container(pod)["ports"]}
        assert ports == {"admin": admin_port} | ({"http": http_port} if process == "web" else {})
        assert environment(pod)["ORDERS_ADMIN_PORT"] == str(admin_port)
        assert "ORDERS_HTTP_PORT" not in environment(pod)


def test_a_worker_is_the_static_member_that_its_pod_name_says():
    """The pod that replaces it has the same host name, and so the same client id: it is the member at once."""
    variables = environment(pods(rendered("minimal"))["worker"])
    assert variables["ORDERS_INSTANCE_ID"] == "metadata.name"
    pod = "shop-order-service-worker-0"
    settings = Settings(instance_id=pod, admin_port=int(variables["ORDERS_ADMIN_PORT"]))
    first, second = (Membership.from_settings(settings, host=pod, machine=machine) for machine in ("a", "b"))
    assert first == second
    assert first.instance_id == pod
    assert first.is_named


def test_probes_ask_paths_that_the_admin_port_answers():
    port = free_port()
    with AdminServer("127.0.0.1", port, list):
        for pod in pods(rendered("minimal")).values():
            probes = {name: container(pod)[f"{name}Probe"] for name in ("startup", "liveness", "readiness")}
            for probe in probes.values():
                assert probe["httpGet"]["port"] == "admin"
                connection = HTTPConnection("127.0.0.1", port, timeout=10)
                connection.request("GET", probe["httpGet"]["path"])
                assert connection.getresponse().status == 200
                connection.close()
            assert probes["readiness"]["httpGet"]["path"] == "/health/ready"
            assert probes["startup"]["httpGet"]["path"] == probes["liveness"]["httpGet"]["path"] == "/health/live"


def test_a_process_may_end_before_it_is_killed():
    """The longest times that the code takes to stop: a commit, a release, the consumer, what hangs."""
    closing = signals.CLOSE_WITHIN_S + signals.CUT_WITHIN_S + admin.STOP_WITHIN_S
    needed = {
        "worker": transactions.DEADLINE_S
        + turn.RELEASE_ALL_WITHIN_S
        + transactions.ABANDON_WITHIN_S
        + consumer.CLOSE_WITHIN_S
        + admin.STOP_WITHIN_S,
        "worker of several processes": parent.STOP_WITHIN_S + admin.STOP_WITHIN_S,
        "projector": closing,
        "web": values()["web"]["preStopSeconds"] + web_process.ENDED_WITHIN_S,
    }
    given = {
        process: pod["spec"]["terminationGracePeriodSeconds"] for process, pod in pods(rendered("minimal")).items()
    }
    for name, seconds in needed.items():
        assert given[name.split()[0]] > seconds


def test_the_version_is_that_of_the_package():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    package = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert chart["version"] == chart["appVersion"] == package["version"]
    assert container(pods(rendered("minimal"))["worker"])["image"] == f"{package['name']}:{package['version']}"


def test_pods_run_as_the_user_of_the_image_and_call_its_commands():
    users = set(re.findall(r"^USER (\d+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    commands = {command.name for command in cli.registered_commands}
    for process, pod in pods(rendered("minimal")).items():
        assert {str(pod["spec"]["securityContext"]["runAsUser"])} == users
        assert container(pod)["args"] == [process]
        assert process in commands


@pytest.mark.parametrize("replicas", [1, 2, 3, 4])
def test_topics_are_those_that_topics_print_writes(replicas):
    settings = Settings(topic_prefix="Shop_", partitions=24)
    printed = format_topics(topic_specs(settings, replicas), TopicFormat.STRIMZI, settings, "shop")
    expected = {topic["metadata"]["name"]: topic for topic in yaml.safe_load_all(printed)}
    changed = f"settings.ORDERS_TOPIC_PREFIX=Shop_,settings.ORDERS_PARTITIONS=24,strimzi.topics.replicas={replicas}"
    topics = of_kind(rendered("everything", "--set", changed), "KafkaTopic")
    assert {topic["metadata"]["name"] for topic in topics} == expected.keys()
    for topic in topics:
        wanted = expected[topic["metadata"]["name"]]
        assert topic["apiVersion"] == wanted["apiVersion"]
        assert topic["spec"] == wanted["spec"]
        assert wanted["metadata"]["labels"].items() <= topic["metadata"]["labels"].items()
        assert topic["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


def rights_of(user):
    """Return the rights of a KafkaUser: `(type, name, pattern, operation)`."""
    return {
        (acl["resource"]["type"], acl["resource"]["name"], acl["resource"]["patternType"], operation)
        for acl in user["spec"]["authorization"]["acls"]
        for operation in acl["operations"]
    }


def users(*arguments):
    return {
        user["metadata"]["labels"]["app.kubernetes.io/component"]: rights_of(user)
        for user in of_kind(rendered("everything", *arguments), "KafkaUser")
    }


DEFAULT_NAMES = ("--set", "settings.ORDERS_TOPIC_PREFIX=null")


def test_a_worker_has_the_rights_of_the_recipe():
    """The lines of kafka-acls in ARCHITECTURE.md."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    [block] = [block for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) if "kafka-acls" in block]
    recipe = set()
    for line in block.splitlines():
        words = line.split(" #", maxsplit=1)[0].split()
        if words[0] != "$acl":
            continue
        options = list(pairwise(words))
        pattern = "prefix" if ("--resource-pattern-type", "prefixed") in options else "literal"
        operations = [value for option, value in options if option == "--operation"]
        for option, kind in (("--topic", "topic"), ("--group", "group"), ("--transactional-id", "transactionalId")):
            recipe |= {(kind, name, pattern, did) for o, name in options if o == option for did in operations}
    assert users(*DEFAULT_NAMES)["worker"] == recipe


@pytest.mark.parametrize("prefix", ["", "shop."])
def test_a_worker_may_do_what_the_doctor_asks_for(prefix):
    rights = users("--set", f"settings.ORDERS_TOPIC_PREFIX={prefix or 'null'}")["worker"]
    names = topic_names(prefix)
    for topic in topic_configs(names):
        for operation in OPERATIONS:
            if needs(operation, topic, names):
                assert any(
                    kind == "topic"
                    and did == operation
                    and (name == topic or (pattern == "prefix" and topic.startswith(name)))
                    for kind, name, pattern, did in rights
                ), (topic, operation)
    group = Settings(topic_prefix=prefix).group_id
    assert ("group", group, "literal", "Read") in rights
    assert {name for kind, name, *_ in rights if kind == "transactionalId"} == {f"{group}-worker-", f"{group}-claim-"}


def test_the_projector_and_the_server_may_only_do_what_they_need():
    rights, names = users(*DEFAULT_NAMES), topic_names()
    assert rights["projector"] == {
        ("topic", topic, "literal", operation)
        for topic in (names.events, names.rejections)
        for operation in ("Read", "Describe")
    }
    written = {right for right in rights["web"] if right[-1] == "Write"}
    assert written == {("topic", names.commands, "literal", "Write")}
    read = {name for _, name, _, operation in rights["web"] if operation == "Read"}
    assert read == set(topic_configs(names))  # GET /v1/operations/why/{id} searches all of them
    groups = {right for right in rights["web"] if right[0] == "group"}
    assert groups == {("group", Settings().group_id, "literal", "Describe")}  # the operator's page lists the members


@pytest.mark.parametrize("name", VALUE_SETS)
def test_the_operators_page_asks_the_admin_ports_of_all_pods(name):
    """Headless services: such a name has the address of each pod, also of those that are not ready."""
    resources = rendered(name)
    services = {service["metadata"]["name"]: service["spec"] for service in of_kind(resources, "Service")}
    addresses = Settings(admin_addresses=environment(pods(resources)["web"])["ORDERS_ADMIN_ADDRESSES"]).admin_addresses
    asked = dict(address.split(":") for address in addresses.split(","))
    for host, port in asked.items():
        assert services[host]["clusterIP"] == "None"
        assert services[host]["publishNotReadyAddresses"]
        assert port in [str(own["port"]) for own in services[host]["ports"]]
    components = [services[host]["selector"]["app.kubernetes.io/component"] for host in asked]
    assert components == list(PROCESSES)


def alerts():
    [rule] = of_kind(rendered("production"), "PrometheusRule")
    return [alert for group in rule["spec"]["groups"] for alert in group["rules"]]


def test_alerts_use_metrics_and_labels_that_exist():
    series = exposed()
    for alert in alerts():
        selectors = selectors_of(promql_parser.parse(alert["expr"]))
        assert selectors
        for selector in selectors:
            used = {matcher.name for matcher in selector.matchers.matchers}
            assert used <= series[selector.name] | TARGET_LABELS, alert["alert"]
            assert {"namespace", "job"} <= used, alert["alert"]
        labels = set().union(*(series[selector.name] for selector in selectors)) | TARGET_LABELS
        assert set(re.findall(r"\$labels\.(\w+)", alert["annotations"]["summary"])) <= labels


def test_alerts_select_the_services_in_front_of_the_admin_ports():
    services = {
        service["metadata"]["name"]
        for service in of_kind(rendered("production"), "Service")
        if service["metadata"]["labels"].get("order-service/port") == "admin"
    }
    jobs = set()
    for alert in alerts():
        for selector in selectors_of(promql_parser.parse(alert["expr"])):
            [pattern] = [matcher.value for matcher in selector.matchers.matchers if matcher.name == "job"]
            matched = {service for service in services if re.fullmatch(pattern, service)}
            assert matched, alert["alert"]
            jobs |= matched
    assert jobs == services


def test_every_metric_that_an_operator_should_watch_has_an_alert():
    watched = {name for name, use in USES.items() if not use.alert.startswith(NO_ALERT)}
    used = {
        re.sub(r"_(bucket|count|sum)$", "", selector.name)
        for alert in alerts()
        for selector in selectors_of(promql_parser.parse(alert["expr"]))
    }
    assert watched - used == set()


def anchors_of(page):
    """Return the anchors of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^a-z0-9_ -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_alert_links_to_a_page_that_exists():
    for alert in alerts():
        base = "https://wiki.shop.example/order-service/"
        path, _, anchor = alert["annotations"]["runbook_url"].removeprefix(base).partition("#")
        assert (DOCS / path).is_file(), alert["alert"]
        assert not anchor or anchor in anchors_of(DOCS / path), alert["alert"]
        assert alert["labels"]["severity"] in {"critical", "warning"}


def test_the_guide_lists_every_alert():
    listed = re.findall(r"^\| `(Orders\w+)` \|", (DOCS / "operations" / "kubernetes.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(alert["alert"] for alert in alerts())


def test_alerts_follow_the_settings():
    by_name = {alert["alert"]: alert["expr"] for alert in alerts()}
    defaults = Settings()
    assert by_name["OrdersLanesNotRunning"].endswith("< 24")
    assert "> 500000 * sum" in by_name["OrdersWaitingRoomFilling"]
    assert by_name["OrdersClockSkew"].endswith(f"> {defaults.clock_skew_max_s / 2:g}")
    assert by_name["OrdersUserLookupsSaturated"].endswith(f">= {defaults.user_service_concurrency}")
    limit = (defaults.web_waiting_max + defaults.web_streams_max) * 0.8
    assert by_name["OrdersHttpSaturated"].endswith(f"> {limit:g}")


def test_the_readme_has_every_value():
    rows = re.findall(r"^\| `([^`]+)`", (CHART / "README.md").read_text(), re.MULTILINE)
    listed = [
        name.replace("PROCESS", process) for name in rows for process in (PROCESSES if "PROCESS" in name else [""])
    ]
    assert sorted(listed) == sorted(flattened(values()))
