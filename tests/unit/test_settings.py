"""Settings from the environment: secrets in files, and the variables that Kubernetes sets for Services."""

import re

import pytest
from pydantic import SecretStr, ValidationError
from structlog.testing import capture_logs

from order_service.settings import SECRET_MAX_BYTES, Settings, _Environment, service_links, variable
from tests.support.command_line import CommandLine

pytestmark = pytest.mark.usefixtures("clean_environment")

LINK = "tcp://10.96.1.2:9092"
PORTS = [variable(field) for field in Settings.model_fields if field.endswith("_port")]
FIELDS = Settings.model_fields
SECRETS = [field for field in FIELDS if FIELDS[field].annotation is SecretStr and f"{field}_file" not in FIELDS]
"""Those whose file is not a setting of its own."""
TOKEN, FILE = "ORDERS_TOKEN", "ORDERS_TOKEN_FILE"


@pytest.fixture
def clean_environment(monkeypatch):
    """Remove the settings of the shell that runs the tests."""
    for field in Settings.model_fields:
        monkeypatch.delenv(variable(field), raising=False)


def config(code=0, **environment):
    return CommandLine(environment)("config", "--json", code=code)


@pytest.mark.parametrize("field", SECRETS)
def test_every_secret_can_be_in_a_file(field, tmp_path, monkeypatch):
    file = tmp_path / "secret"
    file.write_text("p ä$$\n", encoding="utf-8")
    monkeypatch.setenv(f"{variable(field)}_FILE", str(file))
    monkeypatch.setenv(variable(field), "")
    assert "p ä$$" in _Environment(Settings)().values()


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_newlines_at_the_end_of_a_secret_are_removed_and_spaces_kept(end, tmp_path, monkeypatch):
    file = tmp_path / "secret"
    file.write_bytes(b" a b " + end.encode())
    monkeypatch.setenv(FILE, str(file))
    assert Settings().token.get_secret_value() == " a b "


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        pytest.param(None, "cannot be read: No such file or directory", id="missing"),
        pytest.param(b"", "is empty", id="empty"),
        pytest.param(b"\n", "is empty", id="a newline"),
        pytest.param(b"\xff", "is not text in UTF-8", id="bytes"),
        pytest.param(b"x" * (SECRET_MAX_BYTES + 1), "has more than 65536 bytes", id="too large"),
    ],
)
def test_a_file_without_a_secret_is_one_line_that_names_it(content, fault, tmp_path):
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
    said = config(code=2, **{FILE: str(file)}).stderr
    assert said == f"{TOKEN}: the file {file} of {FILE} {fault}\n"


def test_a_folder_is_no_secret(tmp_path):
    said = config(code=2, **{FILE: str(tmp_path)}).stderr
    assert said == f"{TOKEN}: the file {tmp_path} of {FILE} cannot be read: Is a directory\n"


def test_a_secret_and_its_file_are_one_line_that_names_both(tmp_path):
    said = config(code=2, **{TOKEN: "hidden", FILE: str(tmp_path / "secret")}).stderr
    assert said == f"{TOKEN}: set it or {FILE}, not both\n"


def test_an_argument_goes_over_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv(FILE, str(tmp_path / "missing"))
    assert Settings(token="given").token.get_secret_value() == "given"


def test_an_error_of_the_settings_holds_no_secret(monkeypatch):
    monkeypatch.setenv("ORDERS_TOKEN", "hidden")
    monkeypatch.setenv("ORDERS_DATABASE_URL", "hidden")
    with pytest.raises(ValidationError) as raised:
        Settings(partitions="hidden")
    assert "hidden" not in str(raised.value)


@pytest.mark.parametrize("name", PORTS)
@pytest.mark.parametrize("link", [LINK, "udp://[fd00::1]:53", "sctp://10.0.0.1:9092"])
def test_a_link_that_kubernetes_sets_is_no_port(name, link):
    expected = config().stdout
    assert config(**{name: link}).stdout == expected
    assert service_links({name: link, "ORDERS_PORT": LINK, "ORDERS_HOST": LINK}) == [name]


@pytest.mark.parametrize("value", ["9092", "", "http://10.96.1.2:9092", "tcp:/10.96.1.2"])
def test_other_values_are_no_links(value):
    assert service_links({"ORDERS_KAFKA_PORT": value}) == []


def test_a_port_that_is_no_link_is_still_checked():
    said = config(code=2, ORDERS_KAFKA_PORT="http://10.96.1.2:9092").stderr
    assert said.startswith("ORDERS_KAFKA_PORT: Input should be a valid integer")


def test_no_other_setting_has_a_name_that_kubernetes_sets():
    """It sets <SERVICE>_SERVICE_HOST, …_SERVICE_PORT[_<NAME>], …_PORT, and …_PORT_9092_TCP[_PROTO|_PORT|_ADDR]."""
    names = [variable(field) for field in Settings.model_fields]
    names += [f"{variable(field)}_FILE" for field in SECRETS]
    set_by_kubernetes = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT($|_)|_PORT$|_PORT_\d+_(TCP|UDP|SCTP)")
    assert [name for name in names if set_by_kubernetes.search(name)] == PORTS


def test_a_process_warns_once_about_links():
    with capture_logs() as lines:
        CommandLine({"ORDERS_KAFKA_PORT": LINK, "ORDERS_HTTP_PORT": LINK, "ORDERS_HOST": "256.0.0.1"})("users", code=1)
    assert [line["variables"] for line in lines if line["log_level"] == "warning"] == [
        ["ORDERS_HTTP_PORT", "ORDERS_KAFKA_PORT"]
    ]


def test_without_links_a_process_warns_about_nothing():
    with capture_logs() as lines:
        CommandLine({"ORDERS_HOST": "256.0.0.1"})("users", code=1)
    assert lines == []


def test_standbys_and_tables_on_disk_are_not_combined():
    with pytest.raises(ValueError, match="ORDERS_STANDBYS needs ORDERS_TABLE=memory"):
        Settings(table="rocksdb", standbys=1)
