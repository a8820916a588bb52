"""Faust provides only three things here: group membership, the agent loop and the signals.

This package contains all code that depends on Faust's internals. It turns off what the service does itself or does not
need: tables, producer, seeks, automatic commits, codecs, web server, leader, topic declaration and log handlers. The
rest of the worker uses it through the `Fetching` protocol in `worker.py`.
"""
