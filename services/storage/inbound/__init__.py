"""What wakes storage: its internal HTTP interface."""
