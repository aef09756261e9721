"""Pure rules of attempts: no I/O, no clock, no random."""
