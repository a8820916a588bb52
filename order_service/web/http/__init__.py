"""Requests, responses, problems and connections: HTTP, whatever it is used for."""
