"""Pure rules of storage; no I/O, no clock."""
