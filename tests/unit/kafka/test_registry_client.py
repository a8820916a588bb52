"""A registry that is away, hangs, refuses us, or is another server: always one clear line, within the time."""

import asyncio
import time
from base64 import b64encode
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from ssl import CERT_REQUIRED, Purpose, create_default_context

import pytest
from aiohttp import web
from aiokafka.structs import ConsumerRecord
from msgspec import structs
from pydantic import SecretStr, ValidationError

from order_service.cli.environment import fault_lines
from order_service.errors import RegistryAwayError, SchemaError, SetupError
from order_service.kafka.reader import Reader
from order_service.kafka.registry_client import Ids, RegistryPolicy, SchemaRegistry, adopt, adopt_when_available
from order_service.kafka.topics import topic_names
from order_service.local.broker import free_port
from order_service.settings import Settings
from order_service.wire.schemas.catalogue import load
from tests.support.certificates import CertificateAuthority
from tests.support.serving import serving
from tests.support.token_endpoint import TokenEndpoint

TRIES = 2
"""Of the client that has little patience, below."""
VALUE = b"\0\0\0\0\7rest"


@asynccontextmanager
async def server(answer, ssl_context=None):
    """Run a server that answers everything like this; give its address."""
    app = web.Application()

    async def respond(request):
        return await answer(request)

    app.router.add_route("*", "/{path:.*}", respond)
    async with serving(app, ssl_context) as url:
        yield url


def says(status, body="{}", **headers):
    """Make an answer."""

    async def answer(_request):
        return web.Response(status=status, text=body, headers=headers)

    return answer


async def hang(_request):
    await asyncio.Event().wait()


def quick(*urls, try_s=10.0, **changes):
    """Return a client that has little patience, but for an answer that is on its way."""
    return SchemaRegistry(RegistryPolicy(urls=urls, try_s=try_s, waits_s=(0.01,), **changes))


def client_of(url, **settings):
    """Return the client of these settings."""
    policy = RegistryPolicy.from_settings(
        Settings(schema_registry_url=url, **{f"schema_registry_{name}": value for name, value in settings.items()})
    )
    return SchemaRegistry(structs.replace(policy, waits_s=()))


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        pytest.param(hang, "does not answer in time", id="hangs"),
        pytest.param(says(500), "returned an error: GET /schemas/ids/7: status 500", id="500"),
        pytest.param(
            says(401),
            "denies access: GET /schemas/ids/7: status 401: set ORDERS_SCHEMA_REGISTRY_USERNAME",
            id="401",
        ),
        pytest.param(says(200, "<html>"), "is not a schema registry", id="a page"),
        pytest.param(says(200, '{"schema": 7}'), "is not a schema registry", id="another shape"),
        pytest.param(says(404, "{}"), "returned an error: GET /schemas/ids/7: status 404", id="another address"),
        pytest.param(says(302, "{}", Location="/elsewhere"), "status 302", id="a redirect"),
        pytest.param(says(200, "[" * 100_000), "is not a schema registry", id="deep"),
        pytest.param(says(200, " " * 2_000_000), "more than 1048576 bytes", id="huge"),
    ],
)
async def test_no_answer_that_we_can_use_is_one_line(answer, line):
    async with server(answer) as url, quick(url, try_s=2.0) as registry:
        with pytest.raises(RegistryAwayError, match=line) as caught:
            await registry.text_of(7)
        assert "\n" not in str(caught.value)


async def test_nobody_there_is_one_line():
    async with quick(f"http://127.0.0.1:{free_port()}") as registry:
        with pytest.raises(RegistryAwayError, match="no schema registry answers at"):
            await registry.text_of(7)


BASIC = f"Basic {b64encode(b'us:hunter2').decode()}"


@pytest.mark.parametrize(
    ("settings", "header"),
    [
        pytest.param({}, None, id="none"),
        pytest.param({"username": "us", "password": SecretStr("hunter2")}, BASIC, id="basic"),
        pytest.param({"token": SecretStr("hunter2")}, "Bearer hunter2", id="bearer"),
    ],
)
async def test_our_credential_is_sent_and_never_said(settings, header):
    seen = []

    async def answer(request):
        seen.append((request.headers.get("Authorization"), request.headers.get("target-sr-cluster")))
        return web.Response(status=403, text="{}")

    async with server(answer) as url, client_of(url, headers="target-sr-cluster=lsrc-1", **settings) as registry:
        with pytest.raises(RegistryAwayError) as caught:
            await registry.text_of(7)
    assert seen == [(header, "lsrc-1")]
    assert "hunter2" not in str(caught.value)


async def test_a_bearer_token_is_read_again_from_its_file(tmp_path):
    seen = []

    async def answer(request):
        seen.append(request.headers["Authorization"])
        return web.json_response({"error_code": 40403}, status=404)

    file = tmp_path / "token"
    file.write_text("first\n")
    async with server(answer) as url:
        for _ in range(2):
            async with client_of(url, token_file=file) as registry:
                await registry.text_of(7)
            file.write_text("second\n")
    assert seen == ["Bearer first", "Bearer second"]


async def test_a_token_comes_from_the_token_endpoint():
    seen, endpoint = [], TokenEndpoint()

    async def answer(request):
        seen.append(request.headers["Authorization"])
        return web.json_response({"error_code": 40403}, status=404)

    async with endpoint.serving() as token_url, server(answer) as url:
        oauth = {
            "oauth_token_url": token_url,
            "oauth_client_id": "us",
            "oauth_client_secret": SecretStr("hunter2"),
            "oauth_scope": "registry",
            "oauth_audience": "schemas",
        }
        async with client_of(url, **oauth) as registry:
            await registry.text_of(7)
            await registry.text_of(8)
            endpoint.answers(401, {"error": "invalid_client"})
        async with client_of(url, **oauth) as registry:
            with pytest.raises(RegistryAwayError, match=r"is not asked: .*401") as caught:
                await registry.text_of(7)
    assert seen == ["Bearer token-1"] * 2
    assert endpoint.forms[0] == {"grant_type": "client_credentials", "scope": "registry", "audience": "schemas"}
    assert set(endpoint.credentials) == {("us", "hunter2")}
    assert "hunter2" not in str(caught.value)


async def test_a_registry_s_certificate_is_trusted_by_the_file_and_gets_ours(tmp_path):
    authority = CertificateAuthority(tmp_path)
    context = create_default_context(Purpose.CLIENT_AUTH, cafile=authority.file)
    context.load_cert_chain(*authority.issue("registry"))
    context.verify_mode = CERT_REQUIRED
    certificate, key = authority.issue("orders")
    async with server(says(404, '{"error_code": 40403}'), context) as url:
        files = {"ssl_cafile": authority.file, "ssl_certfile": certificate, "ssl_keyfile": key}
        async with client_of(url, **files) as registry:
            assert await registry.text_of(7) is None
        async with client_of(url, ssl_cafile=authority.file) as registry:
            with pytest.raises(RegistryAwayError, match="no schema registry answers at https"):
                await registry.text_of(7)
        async with client_of(url) as registry:
            with pytest.raises(RegistryAwayError, match=r"no schema registry answers at https.*not trusted"):
                await registry.text_of(7)


def test_a_ca_file_that_is_none_is_named(tmp_path):
    with pytest.raises(SetupError, match=r"^ORDERS_SCHEMA_REGISTRY_SSL_CAFILE .*none.pem"):
        client_of("https://registry", ssl_cafile=tmp_path / "none.pem")


OAUTH = {
    "schema_registry_oauth_token_url": "https://login/token",
    "schema_registry_oauth_client_id": "us",
    "schema_registry_oauth_client_secret": SecretStr("hunter2"),
}


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        pytest.param(
            {"schema_registry_username": "us", "schema_registry_token": SecretStr("hunter2")},
            "set only one credential for the schema registry, not ORDERS_SCHEMA_REGISTRY_USERNAME and "
            "ORDERS_SCHEMA_REGISTRY_TOKEN",
            id="two credentials",
        ),
        pytest.param(
            {"schema_registry_token": SecretStr("hunter2"), "schema_registry_token_file": Path("token")},
            "set only one credential for the schema registry, not ORDERS_SCHEMA_REGISTRY_TOKEN and "
            "ORDERS_SCHEMA_REGISTRY_TOKEN_FILE",
            id="a token and its file",
        ),
        pytest.param(
            {"schema_registry_password": SecretStr("hunter2")},
            "ORDERS_SCHEMA_REGISTRY_PASSWORD needs ORDERS_SCHEMA_REGISTRY_USERNAME",
            id="a password alone",
        ),
        pytest.param(
            {"schema_registry_oauth_token_url": "https://login/token"},
            "ORDERS_SCHEMA_REGISTRY_OAUTH_TOKEN_URL needs ORDERS_SCHEMA_REGISTRY_OAUTH_CLIENT_ID and "
            "ORDERS_SCHEMA_REGISTRY_OAUTH_CLIENT_SECRET",
            id="half of OAuth",
        ),
        pytest.param(
            {"schema_registry_oauth_scope": "registry"},
            "ORDERS_SCHEMA_REGISTRY_OAUTH_SCOPE needs ORDERS_SCHEMA_REGISTRY_OAUTH_TOKEN_URL",
            id="a scope alone",
        ),
        pytest.param(
            {"schema_registry_token": SecretStr("hunter2\n")},
            "ORDERS_SCHEMA_REGISTRY_TOKEN must be printable ASCII without blanks",
            id="a line end in a token",
        ),
        pytest.param(
            {"schema_registry_username": "us:er", "schema_registry_password": SecretStr("hunter2")},
            "ORDERS_SCHEMA_REGISTRY_USERNAME must not contain a colon",
            id="a colon in a user name",
        ),
    ],
)
def test_credentials_that_do_not_fit_together_are_one_line_that_names_them(settings, line):
    with pytest.raises(ValidationError) as caught:
        Settings(schema_registry_url="http://registry", **settings)
    [fault] = fault_lines(caught.value)
    assert fault.startswith(line)
    assert "hunter2" not in fault


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(OAUTH, id="oauth"),
        pytest.param({"schema_registry_username": "us"}, id="user"),
        pytest.param({"schema_registry_token": SecretStr("eyJ0.eyJp._-~+/==")}, id="token"),
        pytest.param({}, id="none"),
    ],
)
def test_credentials_that_fit_together_are_accepted(settings):
    assert Settings(schema_registry_url="http://registry", **settings).schema_registry_urls == ("http://registry",)


# Several URLs


async def test_another_url_answers_for_one_that_does_not_and_is_asked_first_from_then_on():
    asked = []

    async def answer(_request):
        asked.append("b")
        return web.json_response({"error_code": 40403}, status=404)

    async with server(hang) as silent, server(answer) as url, quick(silent, url, try_s=0.5) as registry:
        began_at = time.monotonic()
        assert await registry.text_of(7) is None
        assert time.monotonic() - began_at >= 0.5
        assert await registry.text_of(8) is None
        assert (asked, registry.url) == (["b", "b"], url)


async def test_a_request_that_is_cut_short_leaves_the_silent_url():
    not_found = says(404, '{"error_code": 40403}')
    async with server(hang) as silent, server(not_found) as url, quick(silent, url) as registry:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await registry.text_of(7)
        assert await registry.text_of(7) is None


async def test_requests_at_the_same_time_stay_with_the_url_that_answers():
    together = asyncio.Barrier(4)

    async def answer(_request):
        await together.wait()
        return web.json_response({"schema": "{}"})

    async with server(answer) as url, server(hang) as silent, quick(url, silent) as registry:
        async with asyncio.timeout(5.0):
            assert await asyncio.gather(*map(registry.text_of, range(4))) == ["{}"] * 4


async def test_urls_that_all_fail_are_each_named_within_the_time():
    async with server(hang) as silent, server(says(500)) as broken:
        urls = (silent, broken, f"http://127.0.0.1:{free_port()}")
        async with quick(*urls, try_s=0.5) as registry:
            began_at = time.monotonic()
            with pytest.raises(RegistryAwayError) as caught:
                await registry.text_of(7)
            assert time.monotonic() - began_at < 5.0
    line = str(caught.value)
    assert [url in line for url in urls] == [True] * 3
    assert ("does not answer in time" in line, "status 500" in line, "\n" in line) == (True, True, False)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
async def test_a_request_is_tried_a_bounded_number_of_times(count):
    asked = []

    async def answer(request):
        asked.append(request.url.port)
        return web.Response(status=503, text="{}")

    async with AsyncExitStack() as servers:
        urls = [await servers.enter_async_context(server(answer)) for _ in range(count)]
        async with quick(*urls) as registry:
            with pytest.raises(RegistryAwayError):
                await registry.text_of(7)
    assert len(asked) == max(TRIES, count)
    assert len(set(asked)) == count


def test_several_urls_are_one_setting():
    settings = Settings(schema_registry_url=" http://a:8081/ ,https://b/apis/ccompat/v7,http://a:8081")
    assert settings.schema_registry_urls == ("http://a:8081", "https://b/apis/ccompat/v7")


@pytest.mark.parametrize("name", ["SCHEMA_REGISTRY_URL", "ORDERS_SCHEMA_REGISTRY_URL"])
def test_the_url_has_two_names(monkeypatch, name):
    monkeypatch.setenv(name, "http://a:8081,http://b:8081")
    assert Settings().schema_registry_urls == ("http://a:8081", "http://b:8081")


async def test_an_id_that_is_another_s_is_refused():
    """A registry that counts where our own ids lie would make two schemas of one id."""
    catalogue = load()
    with pytest.raises(SchemaError, match="which is invalid or belongs to another schema"):
        catalogue.adopt("OrderPaid.v1.avsc", catalogue.of_file("OrderShipped.v1.avsc").id)


async def test_a_registry_that_is_away_for_too_long_is_asked_once_more_for_each_new_id():
    asked = []

    async def answer(request):
        asked.append(request.path)
        await asyncio.Event().wait()

    async with server(answer) as url, Ids(quick(url, try_s=1.0), load(), patience_s=0) as ids:
        await ids.learn_patiently([VALUE])
        assert len(asked) == TRIES
        assert ids.are_known([VALUE])
        await ids.learn_patiently([VALUE, b"\0\0\0\0\x08rest"])
        assert len(asked) == 2 * TRIES


async def test_an_id_that_the_registry_refuses_makes_no_other_id_unknown():
    catalogue = load()
    text = catalogue.of_file("CreateOrder.v1.avsc").text

    async def answer(request):
        return web.Response(status=500) if request.path.endswith("/7") else web.json_response({"schema": text})

    async with server(answer) as url, Ids(quick(url), catalogue, patience_s=0) as ids:
        await ids.learn_patiently([VALUE])
        await ids.learn_patiently([b"\0\0\0\0\x08rest"])
    assert {7, 8} & catalogue.by_id.keys() == {8}


async def test_a_registry_that_is_away_for_a_moment_is_asked_again():
    asked = []

    async def answer(request):
        asked.append(request.path)
        return web.Response(status=503) if len(asked) < 3 else web.json_response({"schema": text})

    catalogue = load()
    text = catalogue.of_file("CreateOrder.v1.avsc").text
    async with server(answer) as url, Ids(quick(url), catalogue) as ids:
        assert not ids.are_known([VALUE])
        await ids.learn_patiently([VALUE])
        assert ids.are_known([VALUE])
    assert (len(asked), 7 in catalogue.by_id) == (3, True)


async def test_many_unknown_ids_do_not_make_the_registry_silent():
    """Garbage that looks like ids is asked about sixteen at a time; the next id is looked up all the same."""
    asked = []

    async def answer(request):
        asked.append(request.path)
        return web.Response(status=404, text='{"error_code": 40403}')

    async with server(answer) as url, Ids(quick(url), load()) as ids:
        await ids.learn_patiently([b"\0" + number.to_bytes(4, "big") for number in (*range(1, 201), 0, 2**31)])
        assert len(asked) == 200
        await ids.learn_patiently([b"\0" + (201).to_bytes(4, "big")])
        assert len(asked) == 201


# What is written


class Stub:
    """A registry that remembers what is written; `levels` has those of subjects, and under None the global one."""

    def __init__(self, level="BACKWARD", *, denies=()):
        self.levels: dict[str | None, str] = {None: level}
        self.schemas = {}
        self.writes = []
        self._denies = denies

    async def __call__(self, request):
        """Answer as a registry does, or with 403 to the kinds of requests that this account may not make."""
        kind, _, subject = request.path.strip("/").partition("/")
        body = await request.json() if request.can_read_body else {}
        request_kind = f"{request.method} {kind}{'/versions' if request.path.endswith('/versions') else ''}"
        if request_kind in self._denies:
            return web.json_response({"error_code": 40301, "message": "no"}, status=403)
        if kind == "config":
            return self._config(request, subject or None, body)
        subject, is_write = subject.removesuffix("/versions"), subject.endswith("/versions")
        if is_write:
            self.writes.append(("register", subject))
            self.schemas.setdefault((subject, body["schema"]), len(self.schemas) + 1)
        if schema_id := self.schemas.get((subject, body["schema"])):
            return web.json_response({"id": schema_id})
        return web.json_response({"error_code": 40401, "message": "not found"}, status=404)

    def _config(self, request, subject, body):
        if request.method == "PUT":
            self.writes.append((body["compatibility"], subject))
            self.levels[subject] = body["compatibility"]
        level = self.levels.get(subject)
        if level is None and request.query.get("defaultToGlobal") == "true":
            level = self.levels[None]
        if level is None:
            return web.json_response({"error_code": 40408, "message": "not set"}, status=404)
        return web.json_response({"compatibilityLevel": level})

    def has_all(self):
        """Hold all released schemas, as a pipeline has registered them."""
        for schema in load().released:
            self.schemas[schema.subject(topic_names().of(schema.message)), schema.text] = len(self.schemas) + 1
        return self


SUBJECTS = {schema.subject(topic_names().of(schema.message)) for schema in load().released}


@pytest.fixture
def logged(caplog):
    """Return the records of the registry's logger that begin with a sentence."""
    caplog.set_level("WARNING", "order_service.registry")
    return lambda sentence="": [record for record in caplog.records if record.getMessage().startswith(sentence)]


async def adopted(stub, **changes):
    """Adopt the ids of a stub, and return the catalogue."""
    catalogue = load()
    async with server(stub) as url, quick(url, **changes) as registry:
        await adopt(registry, topic_names().of, catalogue)
    return catalogue


async def test_nothing_is_written_to_a_registry_that_has_the_schemas():
    stub = Stub(denies=("PUT config", "POST subjects/versions")).has_all()
    catalogue = await adopted(stub)
    assert stub.writes == []
    assert {schema.id for schema in catalogue.newest.values()} <= set(stub.schemas.values())


@pytest.mark.parametrize("level", ["BACKWARD", "NONE"])
async def test_a_new_subject_gets_our_level_in_a_registry_without_a_chosen_one(level):
    stub = Stub(level)
    await adopted(stub)
    assert {subject for kind, subject in stub.writes if kind == "FULL_TRANSITIVE"} == SUBJECTS
    assert stub.levels[None] == level
    assert len(stub.schemas) == len(load().released)


@pytest.mark.parametrize("level", ["FORWARD", "FULL", "BACKWARD_TRANSITIVE", "FULL_TRANSITIVE"])
async def test_a_global_level_that_an_organization_has_set_stays_and_is_compared(level, logged):
    stub = Stub(level)
    await adopted(stub)
    assert {kind for kind, _ in stub.writes} == {"register"}
    weak = [record.subjects for record in logged("Schema compatibility is weaker than required.")]
    assert weak == ([] if level == "FULL_TRANSITIVE" else [[f"{subject} {level}" for subject in sorted(SUBJECTS)]])


async def test_a_level_that_an_organization_has_set_for_a_subject_stays_and_is_named(logged):
    stub, subject = Stub(), "orders.events.v1-orders.v1.OrderPaid"
    stub.levels[subject] = "FULL"
    await adopted(stub)
    assert (stub.levels[subject], len(stub.levels)) == ("FULL", len(SUBJECTS) + 1)
    [record] = logged("Schema compatibility is weaker than required.")
    assert record.subjects == [f"{subject} FULL"]


async def test_an_account_that_may_register_but_not_set_levels_registers(logged):
    stub = Stub(denies=("PUT config",))
    await adopted(stub)
    assert len(stub.schemas) == len(load().released)
    assert {record.subject for record in logged("The compatibility of a subject was not set.")} == SUBJECTS


async def test_an_account_that_may_not_see_levels_runs(logged):
    stub = Stub(denies=("GET config", "PUT config")).has_all()
    await adopted(stub)
    assert (stub.writes, logged()) == ([], [])


async def test_a_registry_without_levels_is_used_and_the_log_says_so(logged):
    stub = Stub().has_all()

    async def answer(request):
        return web.Response(status=404, text="{}") if request.path.startswith("/config") else await stub(request)

    await adopted(answer)
    assert logged() == logged("Schema compatibility was not compared.") != []


async def test_a_schema_that_is_missing_and_must_not_be_registered_is_named_with_the_command():
    stub = Stub()
    with pytest.raises(SchemaError) as caught:
        await adopted(stub, registers=False)
    assert stub.writes == []
    line = str(caught.value)
    assert "lacks OrderCreated.v1.avsc in the subject orders.events.v1-orders.v1.OrderCreated" in line
    assert "ORDERS_SCHEMA_REGISTRY_REGISTER is false" in line
    assert "`ORDERS_SCHEMA_REGISTRY_REGISTER=true order-service schemas register`" in line


async def test_ids_are_adopted_from_a_registry_that_must_not_be_written_to():
    stub = Stub().has_all()
    catalogue = await adopted(stub, registers=False)
    assert {schema.id for schema in catalogue.newest.values()} <= set(stub.schemas.values())
    assert stub.writes == []


async def test_an_account_that_may_not_register_is_told_who_may():
    with pytest.raises(RegistryAwayError, match=r"POST .*/versions: status 403 no: run `.*schemas register` with"):
        await adopted(Stub(denies=("POST subjects/versions",)))


async def test_a_closed_client_says_so():
    async with quick("http://127.0.0.1:9") as registry:
        pass
    with pytest.raises(RegistryAwayError, match="is closed"):
        await registry.text_of(7)


async def test_who_waits_is_told_each_reason_once():
    told = []
    twice = asyncio.Event()
    statuses = iter([500] * 6 + [401] * 1000)

    async def answer(_request):
        return web.Response(status=next(statuses), text="{}")

    def tell(why):
        told.append(why)
        if len(told) == 2:
            twice.set()

    async with server(answer) as url:
        settings = Settings(schema_registry_url=url)
        waiting = asyncio.create_task(adopt_when_available(settings, topic_names().of, tell, retry_s=0.01))
        await asyncio.wait_for(twice.wait(), 20)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    assert "status 500" in told[0]
    assert "denies access" in told[1]


@pytest.mark.parametrize(
    "url",
    [
        "http://us:hunter2@registry",
        "registry:8081",
        "http://registry?x=1",
        "http://registry,",
        "http://a:8081,b:8081",
        "http://a:8081,http://us:hunter2@b",
    ],
)
def test_an_address_that_cannot_be_used_is_refused(url):
    with pytest.raises(ValueError, match="schema_registry_url"):
        Settings(schema_registry_url=url)


async def test_a_reader_that_looks_ids_up_by_itself_is_told_why_it_cannot():
    record = ConsumerRecord(topic_names().events, 0, 0, 0, 0, b"order-1", VALUE, None, 0, 0, ())
    reader = Reader(Settings(schema_registry_url=f"http://127.0.0.1:{free_port()}"))
    try:
        async with reader._ids:
            away = await reader.look_up([record])
    finally:
        await reader._consumer.stop()
    assert "no schema registry answers at" in str(away)
