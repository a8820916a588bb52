"""What the command line says before any Kafka is asked."""

import subprocess
import sys

import pytest

from order_service.cli.envelope import build_command
from order_service.cli.show import describe, safe
from order_service.domain.messages import CreateOrder
from order_service.local.broker import free_port
from order_service.settings import Settings, variable
from tests.support import samples
from tests.support.command_line import CommandLine

pytestmark = pytest.mark.usefixtures("clean_environment")

RUN = ["up", "worker", "users", "topics", "views", "config", "verify", "doctor", "lanes", "token"]
ORDER = ["create", "amend", "pay", "ship", "deliver", "cancel"]
ALL = [*RUN, *ORDER, "tail", "timeline"]
CONTENTS = {"user_id": "dana", "currency": "EUR", "lines": [{"sku": "a", "quantity": 1, "unit_price": 1}]}
NEW = ["create", "order-1", "--user", "dana", "--currency", "EUR"]


def run(*arguments, code=0, **environment):
    return CommandLine(environment)(*arguments, code=code)


def test_help_names_every_command():
    said = run("--help").stdout
    assert all(f"  {command} " in said for command in ALL)


@pytest.mark.parametrize("command", ALL)
def test_every_command_has_help(command):
    assert "Usage" in run(command, "--help").stdout


def test_the_version_is_said():
    assert run("--version").stdout.startswith("order-service 0.")


def test_only_a_worker_imports_faust():
    program = "import sys, order_service.cli; sys.exit('faust' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(["nothing"], "No such command", id="an unknown command"),
        pytest.param(["create"], "ORDER_ID", id="no order"),
        pytest.param([*NEW, "--line", "mug:2"], "--line 'mug:2' is not", id="a line without a price"),
        pytest.param([*NEW, "--line", "mug:two:5"], "whole numbers", id="a quantity that is no number"),
        pytest.param([*NEW, "--line", f"mug:1:{'5' * 5000}"], "whole numbers", id="a price of 5,000 digits"),
        pytest.param([*NEW, "--line", ":1:5"], "whole numbers", id="a line without a SKU"),
        pytest.param([*NEW, "--line", "mug:1:12.50"], "1250 cents for EUR 12.50", id="a price in euros"),
        pytest.param([*NEW, "--line", "mug:1:5", "--metadata", "a"], "KEY=VALUE", id="metadata without a value"),
        pytest.param(NEW, "missing required field `lines`", id="an order without lines"),
        pytest.param(["deliver", "a b"], "$.order_id", id="an invalid order_id"),
        pytest.param(["deliver", "a", "--command-id", ""], "$.command_id", id="an invalid command_id"),
        pytest.param(["deliver", "a", "--decide-by", "soon"], "$.decide_by", id="an invalid time"),
        pytest.param(["deliver", "a", "--wait", "-1"], "--wait", id="a negative wait"),
        pytest.param(["verify", "--older-than", "soon"], "--older-than", id="an age that is not a number"),
        pytest.param(["verify", "--limit", "-1"], "--limit", id="a negative limit"),
        pytest.param(["lanes", "resume", "1", "--yes"], "--reason: it must not be", id="a resume without a reason"),
        pytest.param(["pay", "a", "--amount", "1", "--currency", "EUR"], "--payment-id", id="a payment without a name"),
        pytest.param(
            ["create", "a", "--body", "/nowhere.json"],
            "/nowhere.json cannot be read: No such file",
            id="a file that is not there",
        ),
    ],
)
def test_a_wrong_call_ends_with_2_and_says_what_is_wrong(arguments, said):
    assert said in run(*arguments, code=2).stderr


@pytest.mark.parametrize(
    ("body", "said"),
    [
        pytest.param("[]", "is not one JSON object", id="a list"),
        pytest.param("{", "is not one JSON object", id="cut short"),
        pytest.param('{"lines": [], "colour": 1}', "contains an unknown field", id="an unknown field"),
        pytest.param('{"order_id": "other"}', "order_id differs between file and command line", id="another order"),
        pytest.param('{"type": "PayOrder"}', "type differs between file and command line", id="another command"),
    ],
)
def test_a_file_that_is_no_order_is_a_wrong_call(tmp_path, body, said):
    file = tmp_path / "order.json"
    file.write_text(body)
    assert said in run(*NEW, "--body", file, code=2).stderr


def test_an_option_goes_over_what_the_file_says():
    fields = CONTENTS | {"command_id": "from-file"}
    envelope = {"command_id": None, "actor": "user:dana"}
    assert build_command(CreateOrder, "order-1", fields, envelope).command_id == "from-file"
    assert build_command(CreateOrder, "order-1", fields, envelope | {"command_id": "option"}).command_id == "option"


def test_a_command_without_a_name_gets_a_new_one():
    first, second = (build_command(CreateOrder, "order-1", CONTENTS, {"actor": "user:dana"}) for _ in range(2))
    assert first.command_id != second.command_id


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ORDERS_PARTITIONS", "none"),
        ("ORDERS_TURN_MS", "0"),
        ("ORDERS_TURN_MS", "1001"),
        ("ORDERS_ADMIN_PORT", "70000"),
        ("USER_SERVICE_URL", "hidden"),
        ("ORDERS_KAFKA", "hidden"),
        ("ORDERS_APP_ID", "-"),
        ("ORDERS_SCHEMA_REGISTRY_HEADERS", "hidden"),
        ("ORDERS_SCHEMA_REGISTRY_HEADERS", "apikey=hidden value"),
        ("USER_SERVICE_URL", "http://users.example/{id}"),
        ("ORDERS_HTTP_CORS_ORIGINS", "https://shop.example:443"),
        ("ORDERS_HTTP_CORS_ORIGINS", "http://shop.example:80"),
    ],
)
def test_a_wrong_setting_is_one_line_with_its_variable_and_without_its_value(variable, value):
    said = run("config", code=2, **{variable: value}).stderr
    assert said.startswith(f"{variable}: ")
    assert len(said.splitlines()) == 1
    assert "hidden" not in said


@pytest.mark.parametrize("number", ["inf", "nan", "1e300"])
def test_no_number_of_a_setting_is_infinite_or_nan(number):
    fields = {name for name, field in Settings.model_fields.items() if isinstance(field.default, float)}
    wrong = {variable(name): number for name in fields | {"payment_due_s"}}
    said = run("config", code=2, **wrong).stderr
    assert {line.partition(":")[0] for line in said.splitlines()} == wrong.keys()


def test_every_wrong_setting_has_a_line():
    said = run("config", code=2, ORDERS_PARTITIONS="x", ORDERS_TURN_MS="y").stderr
    assert [line.partition(":")[0] for line in said.splitlines()] == ["ORDERS_PARTITIONS", "ORDERS_TURN_MS"]


def test_config_shows_no_secret():
    secrets = {"ORDERS_TOKEN": "hidden", "USER_SERVICE_URL": "http://me:hidden@users:80"}
    secrets |= {"ORDERS_SCHEMA_REGISTRY_HEADERS": "apikey=hidden"}  # what a gateway before it asks for
    result = run("config", ORDERS_USER_SERVICE_TOKEN="hidden", **secrets)
    assert "hidden" not in result.output
    assert "http://**********@users:80" in result.stdout


@pytest.mark.parametrize(
    ("environment", "partitions"),
    [
        pytest.param({}, 4, id="the local Kafka"),
        pytest.param({"KAFKA_BOOTSTRAP_SERVERS": "kafka:9092"}, 12, id="a Kafka that is named"),
        pytest.param({"KAFKA_BOOTSTRAP_SERVERS": "kafka:9092", "ORDERS_KAFKA": "embedded"}, 4, id="local by force"),
        pytest.param({"ORDERS_PARTITIONS": "7"}, 7, id="a count that is set"),
    ],
)
def test_the_partition_count_goes_by_the_kafka_in_use(environment, partitions):
    [config] = CommandLine(environment).json("config")
    assert config["ORDERS_PARTITIONS"] == partitions


@pytest.mark.parametrize(
    "arguments",
    [["deliver", "order-1"], ["timeline", "order-1"], ["tail"], ["deliver", "order-1", "--wait", "0"]],
    ids=" ".join,
)
def test_without_a_kafka_there_is_one_line(arguments):
    said = run(*arguments, code=1, KAFKA_BOOTSTRAP_SERVERS=f"127.0.0.1:{free_port()}").stderr
    assert said.startswith("order-service: no Kafka answers at 127.0.0.1:")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("command", ["verify", "lanes"])
def test_without_a_kafka_verify_and_lanes_end_with_a_status_of_their_own(command):
    said = run(command, code=4, KAFKA_BOOTSTRAP_SERVERS=f"127.0.0.1:{free_port()}").stderr
    assert said.startswith("order-service: no Kafka answers at 127.0.0.1:")
    assert len(said.splitlines()) == 1


def test_without_a_kafka_no_lane_is_resumed():
    servers = f"127.0.0.1:{free_port()}"
    said = run("lanes", "resume", "1", "--reason", "why", "--yes", code=4, KAFKA_BOOTSTRAP_SERVERS=servers).stderr
    assert f"order-service: no Kafka answers at {servers}" in said


def test_values_cannot_steer_a_terminal():
    assert safe("x\x1b[31m\r\n\u202e") == r"x\x1b[31m\r\n\u202e"


def test_an_amendment_shows_what_is_different():
    said = describe(samples.order_amended, samples.created)
    assert said == "shipping_address_ref home -> office"
