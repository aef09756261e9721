"""Files delivered to the gateway."""
