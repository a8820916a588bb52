"""The bench: measures the service on a real broker, and prints what it saw beside what it should reach.

`make bench`, or `python -m bench [backlog latency users restore takeover memory idle]`. Nothing here fails for being
slow; a lost or doubled event does. BENCH_RUNS (3) is how often each figure is taken, BENCH_SCALE (1) shrinks the sizes.
"""
