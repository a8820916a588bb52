"""The operator's page in a real browser: what it shows of figures that it is given, and how it asks for them."""

import json
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from playwright.sync_api import expect

from order_service.web.docs import examples
from tests.support.alone import server_alone
from tests.support.chromium import running_chromium, visit
from tests.support.service import until
from tests.support.shop import Http

OVERVIEW = "/v1/operations/overview"
EXAMPLE = examples.successes()["Overview"]
MARKUP = "<img src=x onerror=alert(1)>"
HIDE = """
(hidden) => {
    Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
    document.dispatchEvent(new Event("visibilitychange"));
}
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Serve the page without Kafka; `Figures` answer in place of the server."""
    with server_alone(tmp_path_factory.mktemp("alone")) as port:
        yield Http(port)


@pytest.fixture(scope="module")
def browser(alone):
    with running_chromium() as running:
        yield running


class Figures:
    """What the page gets, and how often it has asked."""

    def __init__(self, page):
        self.body, self.status, self.count = EXAMPLE, 200, 0
        self.page = page
        page.route(f"**{OVERVIEW}", self._answer)

    def _answer(self, route):
        self.count += 1
        kind = "application/json" if self.status == 200 else "application/problem+json"
        route.fulfill(status=self.status, content_type=kind, body=json.dumps(self.body))

    def change(self, **fields):
        self.body = {**EXAMPLE, **fields}
        return self

    def next(self):
        """Make the page ask again, without waiting for its next time."""
        before = self.count
        self.page.clock.run_for(5_000)
        until(lambda: self.page.evaluate("true") and self.count > before, "the page asks again")


@contextmanager
def opened(browser, alone, **options):
    """Open the page with figures; its clock stands still."""
    with visit(browser, f"http://127.0.0.1:{alone.port}", **options) as visited:
        visited.page.clock.install()
        figures = Figures(visited.page)
        yield visited, figures


@pytest.fixture
def page(browser, alone):
    with opened(browser, alone) as (visited, figures):
        visited.page.figures = figures
        visited.page.visited = visited
        yield visited.page


def history(*values):
    """Return points of which the last ones have these values; None is a gap."""
    begin = datetime(2026, 11, 24, 9, tzinfo=UTC)
    padded = [None] * (120 - len(values)) + list(values)
    return [
        {"at": (begin + timedelta(seconds=30 * index)).isoformat(), "lag": value, "decided_per_s": value}
        for index, value in enumerate(padded)
    ]


def row(page, body, name):
    return page.locator(f"#{body} tr", has=page.get_by_role("rowheader", name=name, exact=True))


def test_lanes_processes_waiting_users_dead_letters_and_refusals_are_tables(page):
    page.goto("/operations")
    expect(page.locator("#live")).to_have_text("live")
    parked = row(page, "lanes", "1")
    expect(parked.locator(".state")).to_have_text("parked")
    expect(parked).to_contain_text("Kafka refuses a record: it is too large")
    expect(row(page, "lanes", "0").locator(".state")).to_have_text("running")
    worker = row(page, "processes", "worker:9100")
    expect(worker).to_contain_text(EXAMPLE["processes"][0]["versions"][0])
    expect(worker.locator(".state")).to_have_text("not ready")
    letter = row(page, "letters", "1:0")
    expect(letter).to_contain_text("key_mismatch")
    expect(letter).to_contain_text("orders.commands.v1 1:17")
    expect(row(page, "refusals", "already_paid")).to_contain_text("3")
    expect(page.locator("#waiting-facts")).to_have_text("1 command of 1 user.")
    expect(page.locator("#letters-facts")).to_have_text("In the last hour: key_mismatch 1.")


def test_users_and_orders_lead_to_the_orders_page(page):
    user, order = EXAMPLE["waiting"]["users"][0]["user_id"], EXAMPLE["dead_letters"][0]["order_id"]
    page.goto("/operations")
    expect(page.locator("#waiting").get_by_role("link", name=user)).to_have_attribute("href", f"/#/?user_id={user}")
    expect(page.locator("#letters").get_by_role("link", name=order)).to_have_attribute("href", f"/#/orders/{order}")


def test_what_needs_attention_leads_to_its_runbook(page):
    page.goto("/operations")
    finding = page.locator("#findings li").first
    expect(finding).to_contain_text("Partition 1 is parked")
    expect(finding.get_by_role("link", name="What to do")).to_have_attribute(
        "href", "https://docs.example/operations/runbooks/OrdersLaneParked.md"
    )
    page.figures.change(findings=[{"text": "It is odd.", "page": "operations/lanes.md"}])
    page.figures.next()
    expect(page.locator("#findings li")).to_have_text("It is odd. docs/operations/lanes.md")
    page.figures.change(findings=[], notes=["Partition 3 has no leader."])
    page.figures.next()
    expect(page.locator("#notes li")).to_have_text("Partition 3 has no leader.")
    expect(page.locator("#no-findings")).to_be_hidden()
    page.figures.change(findings=[])
    page.figures.next()
    expect(page.locator("#no-findings")).to_have_text("Nothing needs attention.")


def test_charts_have_gaps_words_and_a_table(page):
    page.figures.change(history=history(5, 1000, None, 20, 40))
    page.goto("/operations")
    chart = page.get_by_role("img", name="So many commands are not decided: 12 now, at most 1,000 in the last hour.")
    expect(chart.locator(".line")).to_have_count(2)
    expect(page.locator("#rate-chart .big")).to_have_text("40/s in the last 30 s, at most 1,000/s in the last hour")
    page.locator("#lag-chart summary").click()
    expect(page.locator("#lag-chart tbody tr")).to_have_count(12)
    expect(page.locator("#lag-chart tbody tr").last).to_contain_text("1,000")
    page.figures.change(history=history(7))
    page.figures.next()
    expect(page.locator("#lag-chart tbody tr").last).to_contain_text("7")
    expect(page.locator("#lag-chart details")).to_have_attribute("open", "")
    page.figures.change(history=history())
    page.figures.next()
    expect(page.locator("#lag-chart")).to_have_text("There are no figures yet.")


def test_the_lag_is_that_of_the_lanes_now_and_unknown_without_kafka(page):
    """A point of the history has the most of 30 s: after a short backlog, it is not the lag any more."""
    page.figures.change(history=history(23), lanes=[{**lane, "lag": 0} for lane in EXAMPLE["lanes"]])
    page.goto("/operations")
    expect(page.locator("#lag-chart .big")).to_have_text("0 now, at most 23 in the last hour")
    page.figures.change(history=history(23, None), lanes=[{**lane, "lag": None} for lane in EXAMPLE["lanes"]])
    page.figures.next()
    expect(page.locator("#lag-chart .big")).to_have_text("unknown now, at most 23 in the last hour")
    expect(page.locator("#rate-chart .big")).to_contain_text("unknown in the last 30 s")


def test_standbys_have_a_column_where_there_are_any(page):
    page.goto("/operations")
    expect(row(page, "lanes", "0")).to_contain_text(EXAMPLE["lanes"][0]["standby"])
    expect(page.get_by_role("columnheader", name="Standby")).to_be_visible()
    page.figures.change(lanes=[{**lane, "standby": None} for lane in EXAMPLE["lanes"]])
    page.figures.next()
    expect(page.get_by_role("columnheader", name="Standby")).to_be_hidden()


def test_what_is_unchanged_keeps_its_focus(page):
    page.goto("/operations")
    link = page.locator("#waiting").get_by_role("link").first
    link.focus()
    page.figures.change(lanes=EXAMPLE["lanes"][:1], at="2026-11-24T10:13:32Z")
    page.figures.next()
    expect(page.locator("#lanes tr")).to_have_count(1)
    expect(link).to_be_focused()


def test_before_anything_is_read_it_says_so_and_asks_sooner(page):
    page.figures.change(at=None, dead_letters=None, waiting=None)
    page.goto("/operations")
    expect(page.locator("#facts")).to_have_text("The figures are being read.")
    expect(page.locator("#figures")).to_be_hidden()
    page.figures.change(dead_letters=None, waiting=None)
    page.clock.run_for(1_000)
    expect(page.locator("#waiting-facts")).to_have_text("It is being read.")
    expect(page.locator("#letters-facts")).to_contain_text("The newest ones are being read.")


def test_a_hidden_page_asks_for_nothing(page):
    page.goto("/operations")
    expect(page.locator("#live")).to_have_text("live")
    page.evaluate(HIDE, True)
    page.clock.run_for(5_000)
    before = page.figures.count
    page.clock.run_for(300_000)
    assert page.evaluate("true")
    assert page.figures.count == before
    page.evaluate(HIDE, False)
    until(lambda: page.evaluate("true") and page.figures.count > before, "the page asks again")


def test_an_error_is_shown_with_the_last_figures_and_passes(page):
    page.goto("/operations")
    expect(page.locator("#live")).to_have_text("live")
    page.figures.status, page.figures.body = 503, {"title": "Service unavailable", "type": "", "status": 503}
    page.figures.next()
    expect(page.get_by_role("alert")).to_contain_text("Service unavailable")
    expect(page.locator("#live")).to_have_text("disconnected, retrying")
    expect(row(page, "lanes", "1")).to_be_visible()
    page.figures.status = 200
    page.figures.change()
    page.figures.next()
    expect(page.locator("#live")).to_have_text("live")
    expect(page.get_by_role("alert")).to_have_count(0)
    page.visited.forgive("status of 503")


def test_texts_of_senders_are_text(page):
    letter = {**EXAMPLE["dead_letters"][0], "reason": MARKUP, "detail": MARKUP, "order_id": MARKUP, "state": MARKUP}
    user = {**EXAMPLE["waiting"]["users"][0], "user_id": MARKUP, "order_id": MARKUP}
    lane = {**EXAMPLE["lanes"][0], "reason": MARKUP, "worker": MARKUP}
    finding = {"text": MARKUP, "page": "javascript:alert(1)"}
    waiting = {**EXAMPLE["waiting"], "users": [user]}
    page.figures.change(dead_letters=[letter], waiting=waiting, lanes=[lane], findings=[finding], notes=[MARKUP])
    page.goto("/operations")
    expect(page.locator("#letters tr")).to_contain_text(MARKUP)
    expect(page.locator("#findings")).to_contain_text(MARKUP)
    assert page.locator("main img").count() == 0
    assert page.locator("a[href^=javascript]").count() == 0


@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_narrow_and_wide_light_and_dark(browser, alone, width, scheme):
    size = {"width": width, "height": 740}
    with opened(browser, alone, viewport=size, color_scheme=scheme) as (visited, figures):
        long = {**EXAMPLE["lanes"][0], "reason": "r" * 300, "worker": "w" * 100}
        figures.change(lanes=[long], findings=[{"text": "f" * 300, "page": ""}])
        visited.page.goto("/operations")
        expect(visited.page.locator("#live")).to_have_text("live")
        assert visited.page.evaluate("document.documentElement.scrollWidth") == width


def test_every_table_has_a_caption_and_whatever_scrolls_can_be_reached(page):
    page.goto("/operations")
    expect(page.locator("#live")).to_have_text("live")
    for table in page.locator("table").all():
        assert table.locator("caption").text_content()
        assert table.locator("thead th:not([scope=col])").count() == 0
    assert page.locator(".scroll:not([tabindex='0'][role=group][aria-label])").count() == 0
    shapes = page.locator(".state").evaluate_all(
        "all => all.map(one => [one.dataset.state, getComputedStyle(one, '::before').borderRadius])"
    )
    assert dict(map(tuple, shapes))["parked"] != dict(map(tuple, shapes))["running"], "colour is not alone"
