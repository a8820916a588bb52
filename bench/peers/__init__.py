"""Our worker beside what its users could pick instead: Kafka Streams and Quix Streams, with the same work to do.

`make peers`, or `python -m bench.peers [parity] [backlog] [latency]`; `--help` lists what makes it smaller. A peer is
named after what it runs on and how often it commits: `streams-20ms`, `streams-rocksdb-100ms`, `quix-1000ms`; ours is
`ours`, or `ours-2` with two workers. `docs/performance.md` has the figures, and what is not equal.
"""
