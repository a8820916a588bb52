"""Requests, responses, problems and connections: the parts of HTTP that all routes share."""
