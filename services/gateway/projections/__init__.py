"""Read models that answer queries."""
