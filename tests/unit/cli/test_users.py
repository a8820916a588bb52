"""`order-service users check`: one lookup, and what its answer means."""

import re
from contextlib import contextmanager
from pathlib import Path

import pytest

from order_service.local.broker import free_port
from order_service.users.stub import Mode
from tests.support.command_line import CommandLine

GUIDE = Path(__file__).parents[3] / "docs" / "guide" / "fit-in.md"
VARIES = re.compile(r"http://[\d.:]+|\d+ ms")

pytestmark = pytest.mark.usefixtures("clean_environment")


@contextmanager
def answering(users, mode):
    users.stub.mode = mode
    try:
        yield
    finally:
        users.stub.mode = Mode.OK


def check(users, user_id, code, **environment):
    [explained] = CommandLine({"USER_SERVICE_URL": users.url, **environment}).json("users", "check", user_id, code=code)
    return explained


def test_an_active_user_is_explained_and_the_exit_status_is_0(users):
    explained = check(users, "dana@example.com", 0)
    assert isinstance(explained.pop("took_ms"), int)
    assert explained == {
        "user_id": "dana@example.com",
        "request": f"GET {users.url}/v1/users/dana%40example.com",
        "credential": "none",
        "status": 200,
        "field": "status",
        "value": "active",
        "fields": [],
        "check": "active",
        "reason": "",
        "create": "accepted",
        "fix": "",
    }


@pytest.mark.parametrize(
    ("user_id", "status", "check_", "create", "setting"),
    [
        ("inactive-1", 200, "not_active", "refused: user_not_active", "ORDERS_USER_SERVICE_ACTIVE"),
        ("unknown-1", 404, "not_found", "refused: user_not_found", "ORDERS_USER_SERVICE_PATH"),
        ("status-410", 410, "not_found", "refused: user_not_found", "ORDERS_USER_SERVICE_PATH"),
        ("status-422", 422, "no_answer", "waits", "ORDERS_USER_SERVICE_NOT_FOUND"),
        ("status-302", 302, "no_answer", "waits", "ORDERS_USER_SERVICE_PATH"),
        ("status-401", 401, "no_answer", "waits", "ORDERS_USER_SERVICE_TOKEN"),
        ("status-503", 503, "no_answer", "waits", "Repair the User Service."),
    ],
)
def test_every_other_answer_is_explained_and_the_exit_status_is_1(users, user_id, status, check_, create, setting):
    before = users.stub.requests.get(user_id, 0)
    explained = check(users, user_id, 1)
    assert (explained["status"], explained["check"]) == (status, check_)
    assert explained["create"].startswith(create)
    assert setting in explained["fix"]
    assert bool(explained["reason"]) is (check_ == "no_answer")
    assert users.stub.requests[user_id] == before + 1


def test_an_id_that_no_url_can_carry_is_not_asked_for(users):
    explained = check(users, "..", 1)
    assert (explained["check"], explained["request"]) == ("not_found", "none: no URL can carry this id")
    assert ".." not in users.stub.requests


def test_a_body_without_the_field_names_the_setting(users):
    explained = check(users, "dana", 1, ORDERS_USER_SERVICE_FIELD="state")
    assert explained["reason"] == "status 200 with application/json: the field state is missing"
    assert explained["fields"] == ["id", "status"]
    assert "ORDERS_USER_SERVICE_FIELD" in explained["fix"]
    with answering(users, Mode.GARBAGE):
        explained = check(users, "dana", 1)
        assert explained["reason"] == "status 200 with text/html: the body is not a JSON object"
        assert explained["fields"] == []
    with answering(users, Mode.REDIRECT):
        assert check(users, "dana", 1)["reason"] == "status 302, a redirect to another path of the same host"


def test_a_service_that_is_away_or_hangs_is_named(users):
    silent = f"http://127.0.0.1:{free_port()}"
    explained = check(users, "dana", 1, USER_SERVICE_URL=silent)
    assert (explained["status"], explained["took_ms"]) == (None, None)
    assert explained["reason"] == "the connection failed: Connection refused"
    with answering(users, Mode.HANG):
        assert check(users, "dana", 1)["reason"] == "no answer within 2 s"


@pytest.mark.parametrize(
    ("environment", "credential"),
    [
        ({"USER_SERVICE_URL": "http://me:hidden@127.0.0.1:1"}, "user name and password of USER_SERVICE_URL"),
        ({"ORDERS_USER_SERVICE_TOKEN": "hidden"}, "bearer token"),
        ({"ORDERS_USER_SERVICE_TOKEN_FILE": "/nowhere/token"}, "bearer token of /nowhere/token"),
        (
            {
                "ORDERS_USER_SERVICE_OAUTH_TOKEN_URL": "http://127.0.0.1:1/token?key=hidden",
                "ORDERS_USER_SERVICE_OAUTH_CLIENT_ID": "orders",
                "ORDERS_USER_SERVICE_OAUTH_CLIENT_SECRET": "hidden",
            },
            "access token of 127.0.0.1:1 for client orders",
        ),
    ],
)
def test_the_credential_is_named_but_not_shown(users, environment, credential):
    explained = check(users, "dana", 1, **({"USER_SERVICE_URL": "http://127.0.0.1:1"} | environment))
    assert explained["credential"] == credential
    assert "hidden" not in str(explained)


def test_the_output_for_people_shows_no_secret(users):
    line = CommandLine(
        {
            "USER_SERVICE_URL": users.url,
            "ORDERS_USER_SERVICE_PATH": "/v1/users/{id}?key=hidden",
            "ORDERS_USER_SERVICE_TOKEN": "hidden",
        }
    )
    said = line("users", "check", "inactive-1", code=1).stdout
    assert "hidden" not in said
    assert said.splitlines()[1:4:2] == [
        f"request     GET {users.url}/v1/users/inactive-1?…",
        "response    status 200, after " + said.splitlines()[3].rpartition("after ")[2],
    ]
    assert "field       status is inactive" in said
    assert "a create    refused: user_not_active" in said


def test_the_guide_shows_what_a_check_prints(users):
    section = GUIDE.read_text(encoding="utf-8").split("\n### Check it\n")[1]
    shown = section.split("```console\n")[1].split("```")[0].partition("\n")[2]
    said = CommandLine({"USER_SERVICE_URL": users.url, "ORDERS_USER_SERVICE_FIELD": "state"})(
        "users", "check", "dana", code=1
    )
    assert [VARIES.sub("", text) for text in (said.stdout, shown)] == [VARIES.sub("", shown)] * 2


@pytest.mark.parametrize("command", [["users", "check", "dana"], ["worker"]], ids=" ".join)
def test_settings_that_do_not_fit_together_are_one_line(command):
    environment = {"ORDERS_USER_SERVICE_TOKEN": "hidden", "ORDERS_USER_SERVICE_TOKEN_FILE": "token"}
    said = CommandLine(environment)(*command, code=1).stderr
    assert said.startswith("order-service: only one of these must be set: ORDERS_USER_SERVICE_TOKEN, ")
    assert len(said.splitlines()) == 1
    assert "hidden" not in said


def test_a_check_without_an_id_is_a_wrong_call():
    assert "ID" in CommandLine({})("users", "check", code=2).stderr
