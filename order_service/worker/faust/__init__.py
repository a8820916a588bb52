"""Faust provides only four things here: group membership, the fetch thread, the agent loop and the signals.

This package contains all code that depends on Faust's internals. It turns off what the service does itself or does not
need: tables, producer, seeks, its own offsets, codecs, web server, leader, topic declaration and log handlers. Its
commit timer commits our positions, for lag monitoring only. The rest of the worker uses it through the `Fetching`
protocol in `assignment.py`.
"""
