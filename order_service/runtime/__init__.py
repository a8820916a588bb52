"""What every process shares: logs, signals, the watchdog, the admin port."""
