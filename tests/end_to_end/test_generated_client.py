"""A client that a generator makes from the OpenAPI document works against the server."""

import importlib
import subprocess
import sys

import openapi_python_client
import pytest
from openapi_python_client.config import Config, ConfigFile, MetaType

from order_service.domain.refusals import Reason
from order_service.web.docs import openapi
from order_service.web.http.problems import ALL
from tests.support.alone import server_alone
from tests.support.shop import Http


@pytest.fixture(scope="module")
def http(tmp_path_factory):
    with server_alone(tmp_path_factory.mktemp("alone")) as port:
        yield Http(port)


@pytest.mark.timeout(300)
def test_a_client_made_from_the_document_passes_mypy_and_reads_our_answers(http, tmp_path, monkeypatch):
    config = Config.from_sources(
        ConfigFile(post_hooks=[], package_name_override="made_client"),
        MetaType.NONE,
        document_source=openapi.FILE,
        file_encoding="utf-8",
        overwrite=False,
        output_path=tmp_path / "made_client",
    )
    assert openapi_python_client.generate(config=config) == []
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), "made_client"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout

    monkeypatch.syspath_prepend(tmp_path)
    api, models = importlib.import_module("made_client.api.questions"), importlib.import_module("made_client.models")
    list_orders, get_order = (
        importlib.import_module(f"{api.__name__}.{name}") for name in ("list_orders", "get_order")
    )
    with importlib.import_module("made_client").Client(base_url=f"http://127.0.0.1:{http.port}") as client:
        assert list_orders.sync(client=client) == models.OrderPage(orders=[], next_=None)
        problem = get_order.sync("nobody-knows-it", client=client)
    assert isinstance(problem, models.OrderNotFoundProblem)
    assert problem.detail == ALL[Reason.ORDER_NOT_FOUND].cause
