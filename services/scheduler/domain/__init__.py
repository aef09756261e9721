"""Pure rules of jobs and of the queue: no I/O, no clock, no randomness."""
