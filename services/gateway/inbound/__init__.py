"""What wakes the gateway: HTTP requests, the log, and hints from the bus."""
