"""The orders page in a real browser: what it shows, and that it shows it live, to everybody, and nothing else."""

import json
import re
import shlex
import socketserver
from datetime import UTC, datetime, timedelta
from threading import Thread
from urllib.parse import urlsplit
from uuid import uuid4

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from playwright.sync_api import expect

from tests.support import samples
from tests.support.chromium import visit
from tests.support.samples import but
from tests.support.service import until
from tests.support.shop import PAYMENT, SHIPMENT, Http

MARKUP = "<img src=x onerror=alert(1)>"
KEY = ec.generate_private_key(ec.SECP256R1())
ISSUER = {"jwt_issuer": "https://issuer.test", "jwt_audience": "orders"}
COUNT_VISIBLE = "all => all.filter(one => one.checkVisibility({ visibilityProperty: true })).length"
NAMED = {"button", "link", "textbox", "combobox", "table", "form", "search", "region", "DisclosureTriangle"}
TAB_STOPS = 'a[href], button, input, select, summary, [tabindex="0"]'


def origin_of(http):
    return f"http://127.0.0.1:{http.port}"


def someone():
    return f"user-{uuid4().hex[:8]}"


def place(http, **changes):
    return http.create(**changes).body["order_id"]


def pay(http, order_id, **changes):
    return http.ask("POST", f"/v1/orders/{order_id}/pay", {**PAYMENT, **changes})


def ship(http, order_id):
    return http.ask("POST", f"/v1/orders/{order_id}/ship", SHIPMENT)


def deliver(http, order_id):
    return http.ask("POST", f"/v1/orders/{order_id}/deliver")


def expect_live(page):
    expect(page.locator("#live")).to_have_text("live")


def expect_step(page, name):
    expect(page.locator("#progress [aria-current=step] strong")).to_have_text(name)


def expect_timeline(page, *types):
    expect(page.locator("#timeline > li")).to_have_count(len(types))
    assert [item.get_attribute("data-type") for item in page.locator("#timeline > li").all()] == list(types)


def row_of(page, order_id):
    return page.locator("#rows tr", has=page.get_by_role("link", name=order_id))


def tab_to(page, selector):
    """Press Tab until an element has the focus."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"Tab does not reach {selector}")


def test_an_order_is_followed_from_placing_to_delivery_by_keyboard_and_live(http, page):
    order_id = place(http)
    page.goto("/")
    page.evaluate("window.isStillThere = true")
    tab_to(page, "#order-id")
    page.keyboard.type(order_id)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text(f"Order {order_id}")
    expect(page.get_by_role("heading", level=1)).to_be_focused()
    expect_step(page, "created")
    expect_live(page)
    for act, name, kind in ((pay, "paid", "OrderPaid"), (ship, "shipped", "OrderShipped")):
        assert act(http, order_id).status == 200
        expect_step(page, name)
        expect(page.locator("#news")).to_contain_text(kind)
    deliver(http, order_id)
    expect_step(page, "delivered")
    expect_timeline(page, "OrderCreated", "OrderPaid", "OrderShipped", "OrderDelivered")
    expect(page).to_have_title(f"delivered · {order_id} · Orders")
    tab_to(page, "#timeline a[data-version='1']")
    page.keyboard.press("Enter")
    expect_step(page, "created")
    assert page.evaluate("window.isStillThere"), "the page was not loaded again"


def test_an_entry_says_what_changed_who_did_it_and_where_it_lies_in_kafka(http, page):
    order_id = place(http, shipping=500)
    http.ask("PATCH", f"/v1/orders/{order_id}", {"shipping": 600})
    pay(http, order_id, amount=3100)
    event = http.get(f"/v1/orders/{order_id}/events").body["events"][1]
    page.goto(f"/#/orders/{order_id}")
    entry = page.locator("#timeline > li").nth(1)
    expect(entry).to_contain_text("OrderAmended")
    expect(entry.locator(".what")).to_have_text("shipping €5.00 → €6.00; total €30.00 → €31.00")
    expect(entry.locator("time")).to_have_attribute("datetime", event["occurred_at"])
    expect(entry.locator(".meta")).to_have_text(
        f"actorservice:localpartition{event['partition']}offset{event['offset']}command{event['command_id']}"
    )
    entry.get_by_text("JSON").click()
    assert json.loads(entry.locator("pre").inner_text()) == event
    expect(page.locator(".lines .total")).to_have_text("Total€31.00")
    expect(page.locator(".facts")).to_contain_text("payment-1")


def test_metadata_stands_apart_and_cannot_pose_as_a_fact(http, page):
    order_id = place(http, metadata={"Payment": "EUR 25.00, payment-7"})
    page.goto(f"/#/orders/{order_id}")
    expect(page.get_by_role("heading", name="Metadata")).to_be_visible()
    expect(page.locator(".metadata")).to_have_text("PaymentEUR 25.00, payment-7")
    expect(page.locator(".facts:not(.metadata)")).not_to_contain_text("Payment")
    page.goto(f"/#/orders/{place(http)}")
    expect_step(page, "created")
    expect(page.get_by_role("heading", name="Metadata")).to_have_count(0)


def test_a_cancelled_order_shows_how_far_it_came(http, page):
    order_id = place(http)
    pay(http, order_id)
    http.ask("POST", f"/v1/orders/{order_id}/cancel", {"reason": "out_of_stock", "note": "none left"})
    page.goto(f"/#/orders/{order_id}")
    expect(page.locator("#progress strong")).to_have_text(["created", "paid", "cancelled"])
    expect_step(page, "cancelled")
    expect(page.locator("#timeline > li").last).to_contain_text("out of stock; none left; refund due €25.00")


def test_the_list_is_live(http, page):
    user_id = someone()
    page.goto(f"/#/?user_id={user_id}")
    expect_live(page)
    expect(page.get_by_role("heading", name="No orders match these filters")).to_be_visible()
    order_id = place(http, user_id=user_id)
    row = row_of(page, order_id)
    expect(row).to_contain_text("created")
    row.get_by_role("link").focus()
    pay(http, order_id)
    expect(row).to_contain_text("paid")
    expect(row.get_by_role("link")).to_be_focused()
    expect(page.locator("#news")).to_contain_text(f"OrderPaid: {order_id}")
    page.keyboard.press("Enter")
    expect_step(page, "paid")
    page.go_back()
    expect(row).to_be_visible()
    expect(page.get_by_label("User", exact=True)).to_have_value(user_id)


def test_what_is_no_order_may_be_a_user(http, visited):
    page, user_id = visited.page, someone()
    order_id = place(http, user_id=user_id)
    page.goto("/")
    page.get_by_label("Order id").fill(user_id)
    page.get_by_role("button", name="Open").click()
    problem = page.get_by_role("alert")
    expect(problem).to_contain_text("Order not found")
    expect(problem.get_by_role("link", name="What this means")).to_have_attribute("href", "/problems/order_not_found")
    problem.get_by_role("link", name="Orders of a user").click()
    expect(page.locator("#rows tr")).to_have_count(1)
    expect(row_of(page, order_id)).to_be_visible()
    visited.forgive("status of 404")


def test_an_order_that_comes_later_is_found_by_trying_again(http, shop, visited):
    page, order_id = visited.page, f"later-{uuid4().hex[:8]}"
    page.goto(f"/#/orders/{order_id}")
    expect(page.get_by_role("alert")).to_contain_text("Order not found")
    shop.service.send([but(samples.create, order_id=order_id)])
    until(lambda: http.get(f"/v1/orders/{order_id}").status == 200, "the order is in the views")
    page.get_by_role("button", name="Try again").click()
    expect_step(page, "created")
    expect_live(page)
    visited.forgive("status of 404")


def test_filters_and_more(http, shop, page):
    user_id = someone()
    commands = [
        but(samples.create, user_id=user_id, actor=samples.SHOP, order_id=f"{user_id}-{n}", command_id=f"c-{n}")
        for n in range(120)
    ]
    shop.service.send(commands)
    until(lambda: len(all_of(http, user_id)) == 120, "all orders are in the views")
    orders = all_of(http, user_id)
    pay(http, orders[70]["order_id"], amount=3800)
    rows = page.locator("#rows tr")
    more = page.get_by_role("button", name="Show more")

    page.goto("/")
    page.get_by_label("User", exact=True).fill(user_id)
    page.get_by_role("button", name="Filter").click()
    expect(rows).to_have_count(50)
    more.click()
    expect(rows).to_have_count(100)
    more.click()
    expect(rows).to_have_count(120)
    expect(more).to_be_hidden()
    assert rows.locator("th").all_inner_texts() == [order["order_id"] for order in orders]
    place(http, user_id=user_id)
    expect(rows.first).to_contain_text("€25.00")
    expect(rows).to_have_count(120)
    expect(more).to_be_visible()

    page.get_by_label("Status").select_option("paid")
    page.get_by_role("button", name="Filter").click()
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text(orders[70]["order_id"])
    page.reload()
    expect(rows).to_have_count(1)
    expect(page.get_by_label("Status")).to_have_value("paid")
    page.get_by_label("Created from").fill("2099-01-01T00:00")
    page.get_by_role("button", name="Filter").click()
    expect(page.get_by_role("heading", name="No orders match these filters")).to_be_visible()
    assert "created_from=2099-01-01T00%3A00%3A00.000Z" in page.url
    page.go_back()
    expect(rows).to_have_count(1)
    page.get_by_label("Created before").fill("2099-01-01T00:00")
    page.get_by_role("button", name="Filter").click()
    expect(page).to_have_url(re.compile("created_to="))
    expect(rows).to_have_count(1)


def all_of(http, user_id):
    return http.get("/v1/orders", user_id=user_id, limit=200).body["orders"]


def test_the_state_after_each_event_can_be_seen(http, page):
    order_id = place(http)
    http.ask("PATCH", f"/v1/orders/{order_id}", {"discount": 500})
    pay(http, order_id, amount=2000)
    page.goto(f"/#/orders/{order_id}")
    total = page.locator(".lines .total")
    expect(total).to_have_text("Total€20.00")
    page.get_by_role("link", name="version 1 OrderCreated").click()
    expect(total).to_have_text("Total€25.00")
    expect_step(page, "created")
    expect(page.locator("#past-version")).to_contain_text("as it was at version 1 of 3")
    expect(page.get_by_role("link", name="version 1 OrderCreated")).to_have_attribute("aria-current", "true")
    page.get_by_role("link", name="version 2 OrderAmended").click()
    expect(total).to_have_text("Total€20.00")
    page.go_back()
    expect(total).to_have_text("Total€25.00")
    page.reload()
    expect(total).to_have_text("Total€25.00")
    ship(http, order_id)
    expect(page.locator("#past-version")).to_contain_text("as it was at version 1 of 4")
    page.get_by_role("link", name="Show the current state").click()
    expect_step(page, "shipped")
    expect(page.get_by_role("heading", name="Contents")).to_be_focused()


def test_a_version_that_is_not_there_is_a_problem_of_its_own(http, visited):
    page, order_id = visited.page, place(http)
    page.goto(f"/#/orders/{order_id}?version=9")
    expect(page.locator("#past-version-problem").get_by_role("alert")).to_contain_text("The order has no such version")
    expect_timeline(page, "OrderCreated")
    visited.forgive("status of 404")


def test_a_refused_command_is_shown_soon(http, page):
    order_id = place(http)
    refused = pay(http, order_id, amount=1)
    assert refused.status == 422
    pay(http, order_id)
    page.goto(f"/#/orders/{order_id}")
    expect_live(page)
    expect_timeline(page, "OrderCreated", "Rejection", "OrderPaid")
    entry = page.locator("#timeline > li").nth(1)
    expect(entry).to_contain_text("PayOrder refused")
    expect(entry.get_by_role("link", name="payment_mismatch")).to_have_attribute("href", refused.body["type"])
    assert http.get(refused.body["type"]).status == 200
    expect(entry).to_contain_text(refused.body["detail"])
    expect(entry).to_contain_text(refused.body["command_id"])
    pay(http, order_id)
    expect_timeline(page, "OrderCreated", "Rejection", "OrderPaid", "Rejection")
    expect(page.locator("#news")).to_contain_text("PayOrder refused: already_paid")


def test_markup_is_text(http, visited):
    page = visited.page
    line = {"sku": "mug-blue", "name": MARKUP, "quantity": 1, "unit_price": 1}
    order_id = place(http, lines=[line], metadata={MARKUP: f"</dd><script>alert(2)</script>{MARKUP}"})
    http.ask("POST", f"/v1/orders/{order_id}/cancel", {"reason": "other", "note": MARKUP})
    page.goto(f"/#/orders/{order_id}")
    expect(page.locator(".lines .name")).to_have_text(MARKUP)
    expect(page.locator(".metadata dt", has_text=MARKUP)).to_be_visible()
    expect(page.locator(".metadata dd", has_text="<script>")).to_be_visible()
    expect(page.locator("#timeline > li").last).to_contain_text(MARKUP)
    page.goto(f"/#/?user_id={MARKUP}&status={MARKUP}")
    expect(page.get_by_role("alert")).to_contain_text("Invalid parameter")
    page.goto(f"/#/orders/{MARKUP}")
    expect(page.get_by_role("alert")).to_contain_text("Order not found")
    expect(page.get_by_role("heading", level=1)).to_contain_text(MARKUP)
    assert page.locator("main img, main script").count() == 0
    visited.forgive("status of 404", "status of 400")


def test_after_a_restart_of_the_service_nothing_is_lost_or_doubled(http, shop, browser):
    order_id, (mine, process) = place(http), shop.serve()
    with visit(browser, origin_of(mine)) as one, visit(browser, origin_of(mine)) as all_orders:
        one.page.goto(f"/#/orders/{order_id}")
        all_orders.page.goto("/")
        expect_live(one.page)
        expect_live(all_orders.page)
        pay(http, order_id)
        expect_step(one.page, "paid")
        process.end()
        expect(one.page.locator("#live")).to_have_text("disconnected, retrying")
        expect(all_orders.page.locator("#live")).to_have_text("disconnected, retrying")
        ship(http, order_id)
        other = place(http)
        serve_again(shop, mine.port)
        expect_live(one.page)
        expect_live(all_orders.page)
        expect_timeline(one.page, "OrderCreated", "OrderPaid", "OrderShipped")
        expect_step(one.page, "shipped")
        expect(row_of(all_orders.page, order_id)).to_contain_text("shipped")
        expect(row_of(all_orders.page, other)).to_have_count(1)
        deliver(http, order_id)
        expect_step(one.page, "delivered")
        expect_timeline(one.page, "OrderCreated", "OrderPaid", "OrderShipped", "OrderDelivered")
        expect(row_of(all_orders.page, order_id)).to_contain_text("delivered")
        for visited in (one, all_orders):
            visited.forgive("net::ERR_")


def serve_again(shop, port):
    module = ("order_service.cli", "web")
    shop.service.start_worker(None, module=module, ORDERS_HTTP_PORT=str(port), ORDERS_LOG="json").wait_ready()


def test_after_a_time_without_network_nothing_is_lost_or_doubled(http, visited):
    page, order_id = visited.page, place(http)
    page.goto(f"/#/orders/{order_id}")
    expect_live(page)
    page.context.set_offline(True)
    expect(page.locator("#live")).to_have_text("disconnected, retrying")
    pay(http, order_id)
    ship(http, order_id)
    page.context.set_offline(False)
    expect_live(page)
    expect_timeline(page, "OrderCreated", "OrderPaid", "OrderShipped")
    deliver(http, order_id)
    expect_timeline(page, "OrderCreated", "OrderPaid", "OrderShipped", "OrderDelivered")
    expect_step(page, "delivered")
    visited.forgive("net::ERR_INTERNET_DISCONNECTED")


@pytest.fixture
def cut_next(page):
    """Cut the next answers to a path, as many as are asked for; those behind them are whole."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Cutting) as server:
        thread = Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        elsewhere = "http://{}:{}/".format(*server.server_address)

        def cut(path, times=1):
            page.route(
                lambda url: urlsplit(url).path == path, lambda route: route.continue_(url=elsewhere), times=times
            )

        yield cut
        server.shutdown()
        thread.join()


class Cutting(socketserver.StreamRequestHandler):
    """Sends a good head, and a body that is cut."""

    def handle(self):
        while self.rfile.readline().strip():
            """It is a line of the request's head."""
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n"
        self.wfile.write(head + b'{"orders": [')


def test_a_list_goes_on_after_answers_that_are_cut(http, visited, cut_next):
    page, user_id = visited.page, someone()
    order_id = place(http, user_id=user_id)
    cut_next("/v1/orders")
    page.goto(f"/#/?user_id={user_id}")
    expect_live(page)
    expect(row_of(page, order_id)).to_contain_text("created")
    cut_next("/v1/orders", times=2)
    pay(http, order_id)
    expect(row_of(page, order_id)).to_contain_text("paid")
    ship(http, order_id)
    expect(row_of(page, order_id)).to_contain_text("shipped")
    expect(page.get_by_role("alert")).to_have_count(0)
    visited.forgive("net::ERR_CONTENT_LENGTH_MISMATCH")


def test_an_order_goes_on_after_answers_that_are_cut(http, visited, cut_next):
    page, order_id = visited.page, place(http)
    cut_next(f"/v1/orders/{order_id}")
    page.goto(f"/#/orders/{order_id}")
    expect_live(page)
    expect_step(page, "created")
    cut_next(f"/v1/orders/{order_id}/events")
    pay(http, order_id)
    expect_step(page, "paid")
    ship(http, order_id)
    expect_step(page, "shipped")
    expect(page.get_by_role("alert")).to_have_count(0)
    visited.forgive("net::ERR_CONTENT_LENGTH_MISMATCH")


def test_an_order_that_is_left_before_it_is_there_leaves_nothing_behind(http, page):
    order_id = place(http)
    page.add_init_script(COUNT_INTERVALS)
    with page.expect_request(f"**/v1/orders/{order_id}"):
        page.route(f"**/v1/orders/{order_id}", lambda _: None)  # no answer
        page.goto(f"/#/orders/{order_id}")
    page.evaluate("location.hash = '#/'")
    expect_live(page)
    assert page.evaluate("intervals") == 0


COUNT_INTERVALS = """
window.intervals = 0;
const begin = window.setInterval;
window.setInterval = (...given) => {
    window.intervals += 1;
    return begin(...given);
};
"""


def test_a_service_that_asks_for_a_token_gets_one(http, shop, browser, tmp_path):
    user_id, key_file = someone(), tmp_path / "key.pem"
    order_id, foreign = place(http, user_id=user_id), place(http)
    key_file.write_bytes(KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    settings = {f"ORDERS_{name.upper()}": value for name, value in ISSUER.items()}
    guarded, _ = shop.serve(ORDERS_JWT_KEY_FILE=str(key_file), **settings)
    with visit(browser, origin_of(guarded)) as visited:
        page = visited.page
        page.goto(f"/#/orders/{order_id}")
        expect(page.get_by_role("heading", level=1)).to_have_text("Authentication required")
        expect(page.get_by_role("alert")).to_contain_text("The request has no valid token.")
        give_token(page, "not.a.token")
        expect(page.get_by_role("alert")).to_contain_text("The request has no valid token.")
        give_token(page, f"Bearer {token_of(user_id)}\n")
        expect_step(page, "created")
        expect_live(page)
        pay(http, order_id)
        expect_step(page, "paid")
        assert page.evaluate("Object.keys(sessionStorage)") == ["token"]
        assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        page.reload()
        expect_step(page, "paid")
        page.goto("/#/")
        expect(page.locator("#rows tr")).to_have_count(1)
        expect_live(page)
        place(http, user_id=user_id)
        expect(page.locator("#rows tr")).to_have_count(2)
        page.goto(f"/#/orders/{foreign}")
        expect(page.get_by_role("alert")).to_contain_text("Order not found")
        page.goto("/#/?user_id=dana")
        expect(page.get_by_role("alert")).to_contain_text("Users list their own orders")
        page.get_by_role("button", name="Forget the token").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Authentication required")
        assert page.evaluate("sessionStorage.length") == 0
        visited.forgive("status of 401", "status of 403", "status of 404")


def give_token(page, text):
    page.get_by_label("Bearer token").fill(text)
    page.get_by_role("button", name="Use the token").click()


def token_of(user_id):
    now = datetime.now(UTC)
    claims = {"iss": ISSUER["jwt_issuer"], "aud": ISSUER["jwt_audience"], "sub": user_id, "iat": now}
    return jwt.encode({**claims, "exp": now + timedelta(minutes=5)}, KEY, "ES256")


def test_ids_of_other_systems_are_shown_and_found_as_they_are(http, page):
    user_id, sku = f' <b>"Größe"&amp;</b>  50%+{someone()} ', "MUSIC/CD  (20-B)\u202e"
    order_id = place(http, user_id=user_id, lines=[{"sku": sku, "quantity": 1, "unit_price": 2500}])
    pay(http, order_id, payment_id="cGF5XzEyMw==")
    page.goto("/")
    page.get_by_label("User", exact=True).fill(user_id)
    page.get_by_role("button", name="Filter").click()
    expect(page.locator("#rows tr")).to_have_count(1)
    assert row_of(page, order_id).locator("td.id").text_content() == user_id
    row_of(page, order_id).get_by_role("link").click()
    expect_step(page, "paid")
    assert page.locator(".lines .id").last.text_content() == sku
    expect(page.locator("#timeline .what").last).to_have_text("€25.00, payment cGF5XzEyMw==")
    owner = page.locator("#order-facts a")
    assert owner.text_content() == user_id
    owner.click()
    expect(page.locator("#rows tr")).to_have_count(1)
    expect(page.get_by_label("User", exact=True)).to_have_value(user_id)


def test_the_example_places_an_order(http, page):
    page.goto(f"/#/?user_id={someone()}")
    expect(page.locator("#example")).to_contain_text("curl")
    command = shlex.split(page.locator("#example").inner_text().replace("\\\n", ""))
    assert command[:4] == ["curl", f"{origin_of(http)}/v1/orders", "-H", "Content-Type: application/json"]
    assert Http(http.port).ask("POST", "/v1/orders", command[-1]).status == 201


@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_narrow_and_wide_light_and_dark(http, browser, width, scheme):
    order_id = place(
        http, metadata={"m" * 40: "v" * 500}, lines=[{"sku": "s" * 255, "quantity": 1, "unit_price": 10**12}]
    )
    size = {"width": width, "height": 740}
    with visit(browser, origin_of(http), viewport=size, color_scheme=scheme, reduced_motion="reduce") as visited:
        page = visited.page
        for address in ("/", f"/#/orders/{order_id}"):
            page.goto(address)
            expect_live(page)
            assert page.evaluate("document.documentElement.scrollWidth") == width
        light = page.evaluate("getComputedStyle(document.body).color === 'rgb(26, 31, 38)'")
        assert light == (scheme == "light")
        assert page.evaluate("document.getAnimations().length") == 0


def test_on_a_phone_the_list_shows_ids_and_times_before_anything_else(http, browser):
    user_id = someone()
    order_id = place(http, user_id=user_id)
    size = {"width": 390, "height": 844}
    with visit(browser, origin_of(http), viewport=size) as visited:
        page = visited.page
        page.goto("/")
        row = row_of(page, order_id)
        link = row.get_by_role("link", name=order_id)
        assert link.evaluate("link => link.scrollWidth <= link.parentElement.clientWidth"), "no part of it is hidden"
        expect(row.locator("time:visible")).to_have_count(1)
        expect(page.get_by_label("Created from")).to_be_hidden()
        assert page.locator("#orders").evaluate("list => list.getBoundingClientRect().top") < size["height"] / 4
        page.get_by_text("Filters").click()
        page.get_by_label("User").fill(user_id)
        page.get_by_role("button", name="Filter", exact=True).click()
        expect(page.locator("#rows tr")).to_have_count(1)
        expect(page.get_by_label("User")).to_have_value(user_id)


@pytest.mark.parametrize("view", ["list", "order", "empty", "problem"])
def test_everything_has_a_name_and_is_reached_by_tab(http, visited, view):
    page, order_id = visited.page, place(http)
    pay(http, order_id, amount=1)
    addresses = {
        "list": "/",
        "order": f"/#/orders/{order_id}?version=1",
        "empty": f"/#/?user_id={someone()}",
        "problem": "/#/?status=lost",
    }
    page.goto(addresses[view])
    expect(page.locator("[aria-busy=false]")).to_be_visible()
    assert unnamed(page) == []
    assert tab_stops(page) == page.locator(TAB_STOPS).evaluate_all(COUNT_VISIBLE)
    if view == "problem":
        visited.forgive("status of 400")


def unnamed(page):
    """Return what the browser tells assistive programs of interactive things that have no name."""
    nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    return [
        node["role"]["value"]
        for node in nodes
        if not node["ignored"] and node["role"]["value"] in NAMED and not node.get("name", {}).get("value")
    ]


def tab_stops(page):
    """Press Tab once round the page; count the elements that had the focus, in any of their parts."""
    page.evaluate("window.reached = new Set()")
    for _ in range(200):
        page.keyboard.press("Tab")
        is_on_page = page.evaluate("document.activeElement !== document.body && !!reached.add(document.activeElement)")
        if not is_on_page:
            return page.evaluate("reached.size")
    raise AssertionError("Tab never leaves the page")


def test_the_skip_link_leads_past_the_header(page):
    page.goto("/")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.locator("#filter-box > summary")).to_be_focused()
