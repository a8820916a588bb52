"""Schemas of other owners."""

LIST = {"name": "Next", "type": "record", "fields": [{"name": "next", "type": ["null", "Next"]}]}
ZEROS = {"name": "OrderPaid", "namespace": "orders.v1", "type": "record"} | {
    "fields": [{"name": "nulls", "type": {"type": "array", "items": "null"}}]
}
