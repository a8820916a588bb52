"""What the operator's page shows: lanes, processes, the last hour, the waiting room and the newest dead letters."""
