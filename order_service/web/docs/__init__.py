"""The documents that the server serves: OpenAPI, AsyncAPI, the event catalogue, and schemas with the registry API."""
