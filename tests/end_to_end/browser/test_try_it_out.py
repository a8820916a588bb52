"""The page `/docs` as a newcomer uses it: "Try it out" and "Execute", with what is filled in."""

import pytest
from playwright.sync_api import expect

STEPS = [
    ("Commands", "create_order", 201),
    ("Commands", "amend_order", 200),
    ("Commands", "pay_order", 200),
    ("Commands", "ship_order", 200),
    ("Commands", "deliver_order", 200),
    ("Questions", "list_orders", 200),
    ("Questions", "get_order", 200),
    ("Questions", "get_events", 200),
    ("Questions", "get_command", 200),
    ("Questions", "why", 200),
    ("Streams", "stream_order", 200),
    ("Streams", "stream_events", 200),
    ("Commands", "create_order", 201),  # what is delivered cannot be cancelled
    ("Commands", "cancel_order", 200),
    ("Commands", "create_order", 201),
    ("Commands", "delete_order", 200),
]


def execute(page, tag, name):
    """Execute an operation with what is filled in; return the status that the page shows."""
    operation = page.locator(f"#operations-{tag}-{name}")
    if "is-open" not in operation.get_attribute("class"):
        operation.locator(".opblock-summary-control").click()
        operation.locator(".try-out__btn").click()  # by role, each search would compute the names of all elements
    else:
        operation.locator(".btn-clear").click()
    operation.locator(".execute").click()
    shown = operation.locator(".live-responses-table tbody .response-col_status")
    expect(shown).to_be_visible(timeout=60_000)  # a busy machine renders the long page slowly
    return int(shown.inner_text().split()[0]), operation


@pytest.mark.timeout(480)
def test_every_operation_works_in_the_order_in_which_a_person_would_go(page):
    page.goto("/docs")
    for tag, name, status in STEPS:
        shown, operation = execute(page, tag, name)
        assert shown == status, f"{name}: {operation.locator('.live-responses-table').inner_text()}"
    expect(operation).to_contain_text('"status": "cancelled"')


def test_the_operations_stand_in_that_order(page):
    page.goto("/docs")
    commands = page.locator("[id^=operations-Commands-]")
    expect(commands).to_have_count(7)
    names = [each.get_attribute("id").rpartition("-")[2] for each in commands.all()]
    assert names == [
        "create_order",
        "amend_order",
        "pay_order",
        "ship_order",
        "deliver_order",
        "cancel_order",
        "delete_order",
    ]


@pytest.mark.parametrize("width", [390, 1200])
def test_the_pages_fit_and_lead_to_each_other(page, width):
    page.set_viewport_size({"width": width, "height": 844})
    page.goto("/")
    for name, heading in (
        ("API", "Order Service"),
        ("Events", "Events of the Order Service"),
        ("Problems", "Problems"),
    ):
        page.get_by_role("navigation", name="Documents").get_by_role("link", name=name).click()
        expect(page.get_by_role("heading", name=heading).first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == width, name
    page.get_by_role("link", name="not_paid").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Not paid")
    page.get_by_role("link", name="Orders", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Orders")
