"""Read models of storage."""
