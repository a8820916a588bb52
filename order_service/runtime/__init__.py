"""The runtime of every process: logs, signals, the watchdog, the admin port."""
