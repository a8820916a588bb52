"""The whole service through a PgBouncer that pools transactions, with its defaults otherwise."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from tests.support.service import until
from tests.support.shop import Shop

THREADS, EACH = 6, 40
PROJECTOR = ("order_service.cli", "projector")
SCHEMA = "orders_views"


def test_everything_is_served_through_a_pooler(service, pgbouncer, postgresql):
    """Callers write and read at once, more of them than the pooler has sessions for each process."""
    settings = {
        "ORDERS_DATABASE_URL": pgbouncer.render_as_string(hide_password=False),
        "ORDERS_DATABASE_SCHEMA": SCHEMA,
    }
    service.environment |= settings
    shop = Shop(service)
    shop.worker.wait_lanes(service.partitions)
    second = service.start_worker(module=PROJECTOR, ORDERS_LOG="json")
    shop.projector.wait_ready()
    second.wait_ready()
    http, web = shop.serve()
    counted: Counter[tuple[str, int]] = Counter()

    def call(_):
        answers = []
        for _ in range(EACH):
            created = http.create()
            order = created.headers["location"]
            order_id = created.body["order_id"]
            answers += [("create", created), ("read", http.get(order)), ("list", http.get("/v1/orders", limit=20))]
            answers += [
                ("cancel", http.ask("POST", f"/v1/orders/{order_id}/cancel")),
                ("events", http.get(f"{order}/events")),
            ]
        return [(name, answer.status) for name, answer in answers]

    with ThreadPoolExecutor(THREADS) as pool:
        for statuses in pool.map(call, range(THREADS)):
            counted.update(statuses)
    assert counted == {
        ("create", 201): THREADS * EACH,
        ("read", 200): THREADS * EACH,
        ("list", 200): THREADS * EACH,
        ("cancel", 200): THREADS * EACH,
        ("events", 200): THREADS * EACH,
    }
    for process in (shop.projector, second, web):
        assert process.is_ready()
        assert "warning" not in process.log()


def test_a_database_that_refuses_says_why_in_the_log(service, pgbouncer):
    wrong = pgbouncer.set(password="hunter2").render_as_string(hide_password=False)
    service.environment |= {"ORDERS_DATABASE_URL": wrong, "ORDERS_LOG": "json"}
    projector = service.start_worker(module=PROJECTOR)
    web = service.start_worker(module=("order_service.cli", "web"), ORDERS_HTTP_PORT="0")
    assert projector.wait_ended() == 1
    [line] = until(lambda: web.lines("Database cannot be used."), "the server says that it has no database")
    for said in (projector.log(), line["why"], web.faults()):
        assert "password authentication failed" in said or "SASL authentication failed" in said
        assert "hunter2" not in said
