"""Encoding and decoding of messages: Avro, JSON, their schemas, and record headers. No I/O."""
