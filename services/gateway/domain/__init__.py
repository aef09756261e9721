"""Pure rules and views of the gateway: no I/O, no clock."""
