"""The bus: request-reply commands, and ordered consumers of the log that are exactly-once in effect."""
