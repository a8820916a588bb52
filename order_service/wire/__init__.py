"""Bytes to domain and back: Avro and JSON, the schemas behind them, and record headers. No I/O."""
