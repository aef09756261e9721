"""The `tunewright` command: a client of the gateway, the starter of embedded mode, the auditor of the log."""
