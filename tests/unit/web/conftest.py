"""Fixtures of the tests of the HTTP server."""

import logging

import pytest

from order_service.runtime.logs import ACCESS


@pytest.fixture
def access():
    """Turn the access log on."""
    logger = logging.getLogger(ACCESS)
    before = logger.level
    logger.setLevel(logging.INFO)
    yield
    logger.setLevel(before)
