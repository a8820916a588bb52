"""The document says what the service does, and its readers, people and generators, get along with it alone."""

import json
import re

import jsonschema_rs
import pytest
import schemathesis

from order_service.web.api.operations import OPERATIONS
from order_service.web.docs import openapi
from order_service.web.http.problems import ALL, BASE, STATUS
from tests.support.alone import application_alone, server_alone
from tests.support.shop import Http

DOCUMENT = json.loads(openapi.FILE.read_text(encoding="utf-8"))
CALLS = [
    (method, path, operation) for path, methods in DOCUMENT["paths"].items() for method, operation in methods.items()
]


@pytest.fixture(scope="module")
def http(tmp_path_factory):
    with server_alone(tmp_path_factory.mktemp("alone")) as port:
        yield Http(port)


def resolved(schema):
    """Follow a reference."""
    found = schema
    while "$ref" in found:
        place, found = found["$ref"], DOCUMENT
        for step in place.removeprefix("#/").split("/"):
            found = found[step]
    return found


def within(node):
    """Provide all objects of the document that lie in this one."""
    if isinstance(node, dict):
        yield node
    if isinstance(node, dict | list):
        for inner in node.values() if isinstance(node, dict) else node:
            yield from within(inner)


def faults(schema, value):
    given = {"components": DOCUMENT["components"], "allOf": [schema]}
    return [str(error) for error in jsonschema_rs.Draft202012Validator(given, validate_formats=True).iter_errors(value)]


def test_the_document_in_the_checkout_is_the_one_that_the_code_makes():
    assert openapi.FILE.read_text(encoding="utf-8") == openapi.text(), "run `make openapi`"


def test_it_is_valid_openapi_3_1():
    assert DOCUMENT["openapi"].startswith("3.1.")
    schemathesis.openapi.from_dict(DOCUMENT).validate()
    for node in within(DOCUMENT):
        if isinstance(node.get("$ref"), str):
            resolved(node)
    for schema in DOCUMENT["components"]["schemas"].values():
        jsonschema_rs.meta.validate(schema | {"$schema": "https://json-schema.org/draft/2020-12/schema"})


def test_every_example_is_what_its_schema_says():
    examples = [
        (node["schema"], value)
        for node in within(DOCUMENT)
        if "schema" in node
        for value in ([node["example"]] if "example" in node else [])
        + [one["value"] for one in node.get("examples", {}).values()]
        + node["schema"].get("examples", [])
    ]
    assert len(examples) > 50
    assert [(value, found) for schema, value in examples if (found := faults(schema, value))] == []


def test_only_what_every_request_needs_has_an_example_that_swagger_ui_would_send():
    for _, _, operation in CALLS:
        for parameter in map(resolved, operation["parameters"]):
            sent = "example" in parameter or "default" in parameter["schema"] or "example" in parameter["schema"]
            assert not sent or parameter["in"] == "path" or "default" in parameter["schema"], parameter["name"]


async def test_every_route_is_in_the_document_and_every_operation_of_it_is_a_route(tmp_path):
    with application_alone(tmp_path) as application:
        routes = {(route.method, route.resource.canonical) for route in application.router.routes() if route.resource}
    documented = {(method.upper(), path) for method, path, _ in CALLS}
    heads = {("HEAD", path) for method, path in documented if method == "GET"}  # each path with GET has HEAD as well
    assert {route for route in routes if route[1].startswith("/v1")} - heads == documented
    assert {operation["operationId"] for _, _, operation in CALLS} == {operation.name for operation in OPERATIONS}


def test_every_status_of_an_operation_lists_the_problems_that_have_it():
    for _, _, operation in CALLS:
        for status, answer in operation["responses"].items():
            if int(status) >= 400:
                [(media_type, content)] = resolved(answer)["content"].items()
                assert media_type == "application/problem+json"
                kinds = [example["value"]["type"].removeprefix(BASE) for example in content["examples"].values()]
                assert {STATUS[kind] for kind in kinds} == {int(status)}
                assert [faults(content["schema"], example["value"]) for example in content["examples"].values()] == [
                    [] for _ in kinds
                ]


def test_the_document_is_served(http):
    answer = http.get("/openapi.json")
    assert answer.body == DOCUMENT
    assert answer.headers["content-type"].startswith("application/json")


@pytest.mark.parametrize("kind", ALL)
def test_the_type_of_a_problem_is_a_page_that_names_cause_and_cure(http, kind):
    page = http.get(BASE + kind)
    said = http.ask("GET", BASE + kind, Accept="application/json").body
    assert page.status == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert (said["cause"], said["cure"]) == (ALL[kind].cause, ALL[kind].cure)
    assert said["routes"] == [
        f"{method.upper()} {path}" for method, path, operation in CALLS if kind in _kinds(operation)
    ]


def test_all_problems_stand_on_one_page(http):
    page = http.get("/problems").body.decode()
    assert re.findall(rf'href="{BASE}(\w+)"', page) == list(ALL)
    listed = http.ask("GET", "/problems", Accept="application/json").body["problems"]
    assert [one["type"] for one in listed] == [BASE + kind for kind in ALL]


def test_a_problem_that_there_is_not_is_not_found(http):
    answer = http.get("/problems/%3Cscript%3E")
    assert answer.status == 404
    assert answer.body["type"] == "/problems/not_found"
    assert "script" not in json.dumps(answer.body)


def _kinds(operation):
    return {
        example["value"]["type"].removeprefix(BASE)
        for status, answer in operation["responses"].items()
        if int(status) >= 400
        for example in resolved(answer)["content"]["application/problem+json"]["examples"].values()
    }
