"""What a browser says of a page of another site is enough to refuse what that page has it send."""

from tests.support.chromium import PATIENCE_MS

SEND = "url => fetch(url, { method: 'POST', mode: 'no-cors' }).catch(() => {})"


def test_a_page_of_another_site_cannot_cancel_an_order(http, browser):
    order = http.create().headers["location"]
    with browser.new_context(bypass_csp=True) as context:
        page = context.new_page()
        page.goto(f"http://localhost:{http.port}/openapi.json")  # for a browser another site than 127.0.0.1
        with page.expect_event("requestfailed", timeout=PATIENCE_MS) as failed:
            page.evaluate(SEND, f"http://127.0.0.1:{http.port}{order}/cancel")
    assert failed.value.failure == "net::ERR_BLOCKED_BY_RESPONSE.NotSameOrigin", "it was sent and answered"
    assert http.get(order).body["status"] == "created"
