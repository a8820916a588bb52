"""Logs: what a library repeats is said once a second."""

import logging

from order_service.log import Seldom


def record(name, sentence):
    return logging.LogRecord(name, logging.WARNING, "", 0, sentence, ("a",), None)


def test_a_library_says_the_same_sentence_once_a_second():
    now = [100.0]
    seldom = Seldom("aiokafka", clock=lambda: now[0])
    assert seldom.filter(record("aiokafka.client", "no node %s"))
    assert not seldom.filter(record("aiokafka.client", "no node %s"))
    assert seldom.filter(record("aiokafka.client", "another"))
    assert seldom.filter(record("order_service.kafka", "no node %s"))
    assert seldom.filter(record("order_service.kafka", "no node %s"))
    now[0] += 1
    assert seldom.filter(record("aiokafka.client", "no node %s"))
