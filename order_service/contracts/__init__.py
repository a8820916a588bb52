"""The public contracts: the AsyncAPI document and the catalogue of events, both generated from one source.

`python -m order_service.contracts` writes `asyncapi.json`, `docs/events.md` and `docs/reference/settings.md`.
"""
