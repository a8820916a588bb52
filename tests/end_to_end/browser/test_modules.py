"""What the page knows of streams, waits and money, in a real browser; its server does what it is told."""

import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest

from order_service.web.docs.pages import CSP, STATIC, TYPES
from tests.support.chromium import running_chromium, visit
from tests.support.service import until

PARSED = """
async (cuts) => {
    const { Parser } = await import("/static/stream.js");
    return cuts.map((pieces) => {
        const parser = new Parser("7");
        const events = pieces.flatMap((piece) => parser.feed(piece));
        return [events.map(({ name, data, id }) => [name, data, id]), parser.lastEventId, parser.retryMs];
    });
}
"""
FOLLOWED = """
async (lastEventId) => {
    const { follow } = await import("/static/stream.js");
    window.heard = [];
    window.leave = new AbortController();
    follow("/stream", {
        lastEventId,
        signal: leave.signal,
        onState: (state, problem) => heard.push(problem ? `${state}: ${problem.title}` : state),
        onEvent: ({ data }) => heard.push(data),
    });
}
"""
THROTTLE = """
async () => {
    const { throttle } = await import("/static/timing.js");
    window.done = 0;
    window.ask = throttle(async () => { done += 1; }, 1000, new AbortController().signal);
}
"""
FAILING_THROTTLE = """
async () => {
    const { throttle } = await import("/static/timing.js");
    window.tries = 0;
    window.ask = throttle(async () => { if (++tries === 1) throw Error("first"); }, 1000, new AbortController().signal);
}
"""
FAILING_IN_TURN = """
async () => {
    const { createQueue } = await import("/static/timing.js");
    const inTurn = createQueue();
    const works = [async () => { throw Error("first"); }, async () => "second"];
    return (await Promise.allSettled(works.map(inTurn))).map(({ value, reason }) => value ?? reason.message);
}
"""
MONEY = "async ([minor, currency]) => (await import('/static/format.js')).formatMoney(BigInt(minor), currency)"
LATER = "async ([iso, than]) => (await import('/static/format.js')).formatDelay(iso, than)"


class Answer:
    """One answer to a request for the stream; an open one stays so until the test is over."""

    def __init__(self, body: str = "", status: int = 200, *, stays_open: bool = False, **headers: str) -> None:
        self.body = body.encode()
        self.status = status
        self.stays_open = stays_open
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Origin(ThreadingHTTPServer):
    """Serves the page's modules, and at `/stream` one answer after the other; it keeps the heads of the requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Serving)
        self.answers: deque[Answer] = deque()
        self.asked: list[dict[str, str]] = []
        self.over = Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Serving(BaseHTTPRequestHandler):
    """One request."""

    server: Origin

    def do_GET(self) -> None:
        if self.path == "/stream":
            self._stream()
        else:
            self._file(STATIC / self.path.rpartition("/")[2])

    def _file(self, path: Path) -> None:
        is_there = path.suffix in TYPES and path.exists()
        self.send_response(200)
        self.send_header("Content-Type", TYPES[path.suffix] if is_there else "text/html")
        self.send_header("Content-Security-Policy", CSP)
        self.end_headers()
        self.wfile.write(path.read_bytes() if is_there else b"<link rel=icon href=data:,>")

    def _stream(self) -> None:
        self.server.asked.append(dict(self.headers))
        answer = self.server.answers.popleft() if self.server.answers else Answer(stays_open=True)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body)
        self.wfile.flush()
        if answer.stays_open:
            self.server.over.wait()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def running_origin() -> Iterator[Origin]:
    with Origin() as origin:
        thread = Thread(target=origin.serve_forever, args=(0.05,))
        thread.start()
        yield origin
        origin.over.set()
        origin.shutdown()
        thread.join()


@pytest.fixture
def origin():
    with running_origin() as running:
        yield running


@pytest.fixture(scope="module")
def browser():
    with running_chromium() as running:
        yield running


@pytest.fixture(scope="module")
def modules(browser):
    """Provide one page for all tests of functions that keep nothing."""
    with running_origin() as origin, visit(browser, origin.url) as opened:
        opened.page.goto("/")
        yield opened.page


@pytest.fixture
def visited(browser, origin):
    with visit(browser, origin.url) as opened:
        opened.page.goto("/")
        yield opened


@pytest.fixture
def page(visited):
    return visited.page


@pytest.fixture
def clock(page):
    """Return the page's clock; it stands still until a test moves it."""
    page.clock.install(time=0)
    page.clock.pause_at(1000)
    return page.clock


def heard(page):
    return page.evaluate("heard")


def wait_heard(page, *expected):
    until(lambda: heard(page) == list(expected), f"the page hears {expected}", within_s=30)


@pytest.mark.parametrize(
    ("text", "events", "last_event_id", "retry_ms"),
    [
        pytest.param("", [], "7", 1000, id="nothing"),
        pytest.param("data: a\n\n", [["message", "a", "7"]], "7", 1000, id="an event"),
        pytest.param("data: a\n", [], "7", 1000, id="half an event does not count"),
        pytest.param("id: 8\nevent: E\ndata: a\n\n", [["E", "a", "8"]], "8", 1000, id="its id and name"),
        pytest.param("id: 8\ndata: a\n", [], "7", 1000, id="the id of half an event does not count"),
        pytest.param(
            "event: E\ndata: a\n\ndata: b\n\n", [["E", "a", "7"], ["message", "b", "7"]], "7", 1000, id="names end"
        ),
        pytest.param(
            "id: 8\ndata: a\n\ndata: b\n\n", [["message", "a", "8"], ["message", "b", "8"]], "8", 1000, id="ids do not"
        ),
        pytest.param("id: 8\n\n", [], "8", 1000, id="an id without an event counts"),
        pytest.param("id\ndata: a\n\n", [["message", "a", ""]], "", 1000, id="an empty id forgets"),
        pytest.param("id: 8\0\ndata: a\n\n", [["message", "a", "7"]], "7", 1000, id="an id with NUL does not count"),
        pytest.param(
            "data: a\ndata:b\ndata:  c\n\n", [["message", "a\nb\n c", "7"]], "7", 1000, id="lines and one blank"
        ),
        pytest.param(
            "data\n\ndata\ndata\n\n", [["message", "", "7"], ["message", "\n", "7"]], "7", 1000, id="empty data"
        ),
        pytest.param(
            "data: a\r\n\r\ndata: b\r\rdata: c\n\n", [["message", x, "7"] for x in "abc"], "7", 1000, id="line ends"
        ),
        pytest.param(": still here\n\ndata: a: b\n:\n\n", [["message", "a: b", "7"]], "7", 1000, id="comments"),
        pytest.param("retry: 50\nretry: x\nretry: -1\n\n", [], "7", 50, id="retry is a number"),
        pytest.param("other: x\nDATA: a\n\n", [], "7", 1000, id="other fields are ignored"),
        pytest.param('data: {"a":"ä€😀"}\n\n', [["message", '{"a":"ä€😀"}', "7"]], "7", 1000, id="any text"),
    ],
)
def test_a_stream_is_read_as_the_standard_says_however_it_is_cut(modules, text, events, last_event_id, retry_ms):
    cuts = [[text], list(text), *([text[:place], text[place:]] for place in range(len(text)))]
    assert modules.evaluate(PARSED, cuts) == [[events, last_event_id, retry_ms]] * len(cuts)


def test_a_stream_goes_on_behind_the_last_event_after_every_break(page, origin):
    origin.answers += [
        Answer("retry: 10\n\nid: 1\ndata: a\n\nid: 2\ndata: half"),
        Answer("id: 2\ndata: b\n\n"),
        Answer("data: c\n\n", stays_open=True),
    ]
    page.evaluate("sessionStorage.setItem('token', 'secret')")
    page.evaluate(FOLLOWED, "")
    wait_heard(page, "live", "a", "broken", "live", "b", "broken", "live", "c")
    assert [head.get("Last-Event-ID") for head in origin.asked] == [None, "1", "2"]
    assert {head["Authorization"] for head in origin.asked} == {"Bearer secret"}
    page.evaluate("leave.abort()")
    assert heard(page)[-1] == "c"


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_stream_that_is_refused_is_not_asked_for_again(visited, origin, clock, status):
    origin.answers.append(Answer('{"title": "No"}', status))
    visited.page.evaluate(FOLLOWED, "")
    wait_heard(visited.page, "refused: No")
    clock.fast_forward(60_000)
    assert len(origin.asked) == 1
    visited.forgive(f"status of {status}")


def test_a_place_that_the_service_does_not_know_is_forgotten(visited, origin):
    origin.answers += [Answer("{}", 400), Answer("data: a\n\n", stays_open=True)]
    visited.page.evaluate(FOLLOWED, "7")
    wait_heard(visited.page, "broken", "live", "a")
    assert [head.get("Last-Event-ID") for head in origin.asked] == ["7", None]
    visited.forgive("status of 400")


def test_waits_grow_but_not_past_their_bound_and_a_network_that_comes_back_ends_them(visited, origin, clock):
    page = visited.page
    origin.answers += [Answer("{}", 503)] * 8
    page.evaluate(FOLLOWED, "")
    for failures in range(1, 8):
        until(lambda: heard(page) == ["broken"] * failures, f"failure {failures}")  # noqa: B023 - awaited in here
        clock.fast_forward(min(1000 * 2 ** (failures - 1), 15_000))
    until(lambda: len(origin.asked) == 8, "no wait is longer than the bound")
    until(lambda: len(heard(page)) == 8, "the last failure is heard")
    clock.fast_forward(7000)
    assert len(origin.asked) == 8, "by now a wait has at least half of the bound"
    page.evaluate("window.dispatchEvent(new Event('online'))")
    wait_heard(page, *["broken"] * 8, "live")
    visited.forgive("status of 503")


def test_the_service_can_ask_for_patience(visited, origin, clock):
    page = visited.page
    origin.answers.append(Answer("{}", 503, Retry_After="5"))
    page.evaluate(FOLLOWED, "")
    wait_heard(page, "broken")
    clock.fast_forward(4900)
    assert len(origin.asked) == 1
    clock.fast_forward(100)
    wait_heard(page, "broken", "live")
    visited.forgive("status of 503")


def test_a_connection_that_says_nothing_is_given_up(page, origin, clock):
    origin.answers.append(Answer(": still here\n\n", stays_open=True))
    page.evaluate(FOLLOWED, "")
    wait_heard(page, "live")
    clock.fast_forward(39_000)
    assert heard(page) == ["live"]
    clock.fast_forward(1000)
    wait_heard(page, "live", "broken")
    clock.fast_forward(1000)
    wait_heard(page, "live", "broken", "live")


def test_a_tab_that_nobody_sees_holds_no_connection(page, origin):
    origin.answers.append(Answer("id: 3\ndata: a\n\n", stays_open=True))
    page.evaluate(FOLLOWED, "")
    wait_heard(page, "live", "a")
    page.evaluate(SEEN, "hidden")
    wait_heard(page, "live", "a", "broken")
    page.evaluate(SEEN, "visible")
    wait_heard(page, "live", "a", "broken", "live")
    assert origin.asked[-1]["Last-Event-ID"] == "3"


SEEN = """
(state) => {
    Object.defineProperty(document, "visibilityState", { value: state, configurable: true });
    document.dispatchEvent(new Event("visibilitychange"));
}
"""


def test_what_is_asked_for_often_is_done_at_once_and_then_seldom(page, clock):
    page.evaluate(THROTTLE)
    page.evaluate("void [ask(), ask(), ask()]")
    assert page.evaluate("done") == 1
    clock.run_for(999)
    assert page.evaluate("done") == 1
    clock.run_for(1)
    assert page.evaluate("done") == 2
    clock.run_for(5000)
    assert page.evaluate("done") == 2
    page.evaluate("void ask()")
    assert page.evaluate("done") == 3


def test_what_fails_is_done_again_when_it_is_asked_for(page):
    page.evaluate(FAILING_THROTTLE)
    assert page.evaluate("ask().catch((error) => error.message)") == "first"
    page.evaluate("void ask()")
    assert page.evaluate("tries") == 2


def test_work_that_fails_holds_up_none_behind_it(modules):
    assert modules.evaluate(FAILING_IN_TURN) == ["first", "second"]


@pytest.mark.parametrize(
    ("minor", "currency", "shown"),
    [
        ("2500", "EUR", "€25.00"),
        ("-400", "EUR", "-€4.00"),
        ("0", "EUR", "€0.00"),
        ("2500", "JPY", "JP¥2,500"),
        ("2500", "KWD", "KWD 2.500"),
        ("2500", "CLF", "CLF 0.2500"),
        ("2500", "HUF", "HUF 25.00"),
        ("2500", "IQD", "IQD 2.500"),
        (str(2**53 - 1), "EUR", "€90,071,992,547,409.91"),
        (str(10**18 + 1), "EUR", "€10,000,000,000,000,000.01"),
    ],
)
def test_money_has_the_digits_of_its_currency_and_loses_none(modules, minor, currency, shown):
    assert re.sub(r"\s", " ", modules.evaluate(MONEY, [minor, currency])) == shown


@pytest.mark.parametrize(
    ("milliseconds", "said"),
    [(0, "+0 ms"), (134, "+134 ms"), (1000, "+1 s"), (59_940, "+59.9 s"), (5_400_000, "+1.5 h"), (864e5 * 3, "+3 d")],
)
def test_gaps_are_said_in_the_largest_unit_that_fits(modules, milliseconds, said):
    then = "2026-01-05T09:00:00Z"
    later = modules.evaluate("([iso, ms]) => new Date(Date.parse(iso) + ms).toISOString()", [then, milliseconds])
    assert modules.evaluate(LATER, [later, then]) == said
