"""Documents that the server shows: OpenAPI, AsyncAPI, the event catalogue, the schemas as a registry serves them."""
