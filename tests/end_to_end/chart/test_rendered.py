"""The chart is rendered by Helm, and is what Kubernetes and the operators accept."""

import json
import re
import subprocess
import textwrap
from pathlib import Path

import pytest
import yaml

from tests.support.chart import (
    CHART,
    NEWEST,
    PROCESSES,
    TOOLS,
    VALUE_SETS,
    container,
    environment,
    helm_template,
    of_kind,
    pods,
    process_of,
    rendered,
    rendered_text,
    tool,
    values_file,
    workloads,
)
from tests.support.service import ROOT

OLDEST = "1.28.0"
"""The oldest version that the chart accepts."""
KUBERNETES = TOOLS / "python/kubernetes_validate/kubernetes-json-schema"
LOCATIONS = (
    f"{KUBERNETES}/{{{{.NormalizedKubernetesVersion}}}}-local-strict/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json",
    f"{Path(__file__).parent / 'schemas'}/{{{{.ResourceKind}}}}.json",
)


def conforms(manifests, version):
    """Return what kubeconform finds: `(kind, name, message)` of each resource that does not fit its schema."""
    locations = [option for location in LOCATIONS for option in ("-schema-location", location)]
    options = ["-strict", "-verbose", "-output", "json", "-n", "1", "-kubernetes-version", version, *locations]
    command = [tool("kubeconform"), *options]
    done = subprocess.run(command, input=manifests, capture_output=True, text=True, check=False, timeout=60)
    checked = json.loads(done.stdout)["resources"]
    resources = [resource for resource in yaml.safe_load_all(manifests) if resource]
    assert len(checked) == len(resources)
    return [(one["kind"], one["name"], one["msg"]) for one in checked if one["status"] != "statusValid"]


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_resource_fits_its_schema(version):
    assert conforms("".join(rendered_text(name, version=version) for name in VALUE_SETS), version) == []


def test_the_check_finds_a_wrong_field_in_every_kind():
    resources = {resource["kind"]: resource for resource in rendered("everything")}
    for resource in resources.values():
        resource.get("spec", resource)["unknown"] = 1
    found = conforms(yaml.safe_dump_all(resources.values()), NEWEST)
    assert sorted(kind for kind, _, _ in found) == sorted(resources)


def test_every_optional_part_can_be_switched_off():
    parts = ["networkPolicy.enabled", "serviceAccount.create"]
    parts += [
        f"{process}.{part}.enabled" for process in PROCESSES for part in ("podDisruptionBudget", "topologySpread")
    ]
    off = ("--set", ",".join(f"{part}=false" for part in parts), "--set", "web.preStopSeconds=0")
    manifests = rendered_text("minimal", *off)
    assert conforms(manifests, NEWEST) == []
    assert {resource["kind"] for resource in rendered("minimal", *off)} == {"Service", "StatefulSet", "Deployment"}


def test_older_versions_of_kubernetes_are_refused():
    assert "kubeVersion" in helm_template("--values", values_file("minimal"), version="1.27.0").stderr


@pytest.mark.parametrize("name", VALUE_SETS)
def test_the_linter_of_helm_finds_nothing(name):
    command = [tool("helm"), "lint", CHART, "--strict", "--kube-version", NEWEST, "--values", values_file(name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"settings.ORDERS_TURNS_MS": "5"}, "no process of the chart has this setting", id="unknown"),
        pytest.param({"settings.ORDERS_KAFKA": "docker"}, "no process of the chart", id="of a local Kafka"),
        pytest.param(
            {"settings.ORDERS_DATABASE_URL": "postgresql://"}, "it is a secret: set it in secrets", id="secret"
        ),
        pytest.param({"settings.ORDERS_JWT_KEY_FILE": "/keys"}, "it is a file: set it in files", id="file"),
        pytest.param(
            {"secrets.ORDERS_USER_SERVICE_TOKEN": "a"},
            "set files.ORDERS_USER_SERVICE_TOKEN_FILE",
            id="secret with a file",
        ),
        pytest.param({"settings.ORDERS_INSTANCE_ID": "a"}, "the chart sets it", id="set by the chart"),
        pytest.param({"settings.ORDERS_PROJECTORS": "2"}, "the chart sets it", id="the number of replicas"),
        pytest.param({"worker.settings.ORDERS_TABLE": "rocksdb"}, "needs worker.persistence.enabled", id="no volume"),
        pytest.param({"worker.settings.ORDERS_JWT_ISSUER": "a"}, "worker does not use it", id="of another process"),
        pytest.param(
            {"secrets.ORDERS_DATABASE_URL": "postgresql://"}, "it must be {secret: NAME", id="secret in values"
        ),
        pytest.param(
            {"secrets.ORDERS_KAFKA_SASL_PASSWORD.configMap": "a", "secrets.ORDERS_KAFKA_SASL_PASSWORD.key": "b"},
            "it must be {secret: NAME",
            id="secret in a ConfigMap",
        ),
        pytest.param(
            {"settings.KAFKA_BOOTSTRAP_SERVERS": "null"}, "KAFKA_BOOTSTRAP_SERVERS is required", id="no Kafka"
        ),
        pytest.param({"settings.USER_SERVICE_URL": "null"}, "USER_SERVICE_URL is required", id="no User Service"),
        pytest.param({"secrets.ORDERS_DATABASE_URL": "null"}, "ORDERS_DATABASE_URL is required", id="no database"),
        pytest.param({"settings.ORDERS_JWT_JWKS_URL": "null"}, "ORDERS_JWT_JWKS_URL or", id="no authentication"),
        pytest.param({"strimzi.topics.create": "true"}, "strimzi.cluster is required", id="no cluster"),
        pytest.param({"serviceMonitor.enabled": "true"}, "adminFrom must name Prometheus", id="no way for Prometheus"),
        pytest.param({"worker.replica": "3"}, "replica", id="a value that does not exist"),
    ],
)
def test_wrong_values_are_refused_with_what_to_do(arguments, message):
    options = [option for name, value in arguments.items() for option in ("--set", f"{name}={value}")]
    done = helm_template("--values", values_file("minimal"), *options)
    assert done.returncode != 0
    assert message in done.stderr


@pytest.mark.parametrize("name", VALUE_SETS)
def test_pods_are_restricted(name):
    """As the Pod Security Standard "restricted" asks, and with a read-only root file system."""
    for pod in pods(rendered(name)).values():
        security = pod["spec"]["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container(pod)["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod["spec"].keys()
        kinds = {kind for volume in pod["spec"]["volumes"] for kind in volume if kind != "name"}
        assert kinds <= {"emptyDir", "projected"}
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert pod["spec"]["enableServiceLinks"] is False


def test_the_values_in_the_guide_are_accepted(tmp_path):
    guide = (ROOT / "docs" / "operations" / "kubernetes.md").read_text()
    blocks = re.findall(r"^ *```yaml\n(.*?)^ *```", guide, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    for number, block in enumerate(blocks):
        file = tmp_path / f"{number}.yaml"
        file.write_text(textwrap.dedent(block))
        others = [] if number == 0 else ["--values", values_file("minimal")]
        done = helm_template(*others, "--values", file)
        assert done.returncode == 0, done.stderr


def test_no_value_is_a_secret():
    for name in VALUE_SETS:
        assert of_kind(rendered(name), "Secret") == []


@pytest.mark.parametrize("name", VALUE_SETS)
def test_selectors_select_pods_of_one_process(name):
    resources = rendered(name)
    labels = [(process_of(one), one["spec"]["template"]["metadata"]["labels"]) for one in workloads(resources)]

    def selected(selector):
        return [process for process, own in labels if selector.items() <= own.items()]

    for resource in workloads(resources):
        assert selected(resource["spec"]["selector"]["matchLabels"]) == [process_of(resource)]
    for resource in of_kind(resources, "PodDisruptionBudget"):
        assert set(selected(resource["spec"]["selector"]["matchLabels"])) == {process_of(resource)}
    for resource in of_kind(resources, "Service"):
        [process] = set(selected(resource["spec"]["selector"]))
        names = [port["name"] for port in container(pods(resources)[process])["ports"]]
        assert [port["targetPort"] for port in resource["spec"]["ports"]] == [
            names[0] if len(names) == 1 else port["name"] for port in resource["spec"]["ports"]
        ]
    for resource in of_kind(resources, "NetworkPolicy"):
        [process] = set(selected(resource["spec"]["podSelector"]["matchLabels"]))
        assert resource["metadata"]["name"].endswith(process)
    for process, pod in pods(resources).items():
        for spread in pod["spec"]["topologySpreadConstraints"]:
            assert set(selected(spread["labelSelector"]["matchLabels"])) == {process}


@pytest.mark.parametrize("name", VALUE_SETS)
def test_every_mount_has_a_volume_and_no_name_is_there_twice(name):
    resources = rendered(name)
    claims = {
        claim["metadata"]["name"]
        for workers in of_kind(resources, "StatefulSet")
        for claim in workers["spec"].get("volumeClaimTemplates", [])
    }
    for process, pod in pods(resources).items():
        volumes = {volume["name"] for volume in pod["spec"]["volumes"]} | (claims if process == "worker" else set())
        assert {mount["name"] for mount in container(pod)["volumeMounts"]} == volumes
        names = [entry["name"] for entry in container(pod)["env"]]
        assert sorted(set(names)) == sorted(names)
    keys = [(resource["kind"], resource["metadata"]["name"]) for resource in resources]
    assert sorted(set(keys)) == sorted(keys)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_each_projector_is_a_deployment_that_reads_its_share(count):
    resources = rendered("minimal", "--set", f"projector.replicas={count}")
    projectors = [one for one in workloads(resources) if process_of(one) == "projector"]
    shares = [environment(one["spec"]["template"]) for one in projectors]
    assert [share["ORDERS_PROJECTOR_INDEX"] for share in shares] == [str(index) for index in range(count)]
    assert {share["ORDERS_PROJECTORS"] for share in shares} <= {str(count)}
    for one in projectors:
        assert one["kind"] == "Deployment"
        assert (one["spec"]["replicas"], one["spec"]["strategy"]) == (1, {"type": "Recreate"})


def test_tables_on_disk_are_on_the_volume_of_the_worker():
    worker = pods(rendered("everything"))["worker"]
    [state] = [mount["mountPath"] for mount in container(worker)["volumeMounts"] if mount["name"] == "state"]
    variables = environment(worker)
    assert variables["ORDERS_TABLE"] == "rocksdb"
    assert variables["ORDERS_TABLE_DIR"].startswith(f"{state}/")
    assert "ORDERS_TABLE_DIR" not in environment(pods(rendered("minimal"))["worker"])


def test_long_names_are_shortened_to_what_kubernetes_accepts():
    done = helm_template("--values", values_file("production"), "--set", f"fullnameOverride={'a' * 53}")
    names = [resource["metadata"]["name"] for resource in yaml.safe_load_all(done.stdout) if resource]
    assert max(map(len, names)) <= 52  # a StatefulSet's pods have a label with its name and a hash: 63 in all


def test_the_stateful_set_has_its_service():
    resources = rendered("minimal")
    [workers] = of_kind(resources, "StatefulSet")
    [service] = [
        one for one in of_kind(resources, "Service") if one["metadata"]["name"] == workers["spec"]["serviceName"]
    ]
    assert service["spec"]["clusterIP"] == "None"


def test_prometheus_finds_the_admin_port_of_every_process():
    resources = rendered("everything")
    [monitor] = of_kind(resources, "ServiceMonitor")
    services = [
        service
        for service in of_kind(resources, "Service")
        if monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    ]
    assert [service["metadata"]["labels"]["app.kubernetes.io/component"] for service in services] == [
        "worker",
        "projector",
        "web",
    ]
    [port] = {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]}
    assert all(port in [own["name"] for own in service["spec"]["ports"]] for service in services)


def test_the_autoscaler_alone_decides_the_number_of_servers():
    resources = rendered("production")
    [scaler] = of_kind(resources, "HorizontalPodAutoscaler")
    [server] = [
        one
        for one in of_kind(resources, "Deployment")
        if one["metadata"]["name"] == scaler["spec"]["scaleTargetRef"]["name"]
    ]
    assert "replicas" not in server["spec"]


def test_limits_for_the_network_let_probes_and_names_through():
    policies = {
        policy["metadata"]["name"]: policy["spec"] for policy in of_kind(rendered("production"), "NetworkPolicy")
    }
    for policy in policies.values():
        assert policy["policyTypes"] == ["Ingress", "Egress"]
        assert policy["egress"][0] == {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}
    release = {"app.kubernetes.io/name": "order-service", "app.kubernetes.io/instance": "shop"}
    to_admin = {"ports": [{"port": "admin"}], "to": [{"podSelector": {"matchLabels": release}}]}
    assert [name for name, policy in policies.items() if to_admin in policy["egress"]] == ["shop-order-service-web"]
    [admin] = policies["shop-order-service-worker"]["ingress"]
    assert admin["ports"] == [{"port": "admin"}]
    assert len(admin["from"]) == 2


def test_numbers_have_no_exponent():
    settings = {entry["name"]: entry.get("value") for entry in container(pods(rendered("production"))["worker"])["env"]}
    assert settings["ORDERS_WAITING_MAX"] == "1000000"
    assert settings["ORDERS_PAYMENT_DUE_S"] == "86400"
