"""What others may rely on: the AsyncAPI document and the catalogue of events, both made from one source.

`python -m order_service.contracts` writes `asyncapi.json` and `docs/events.md` anew.
"""
