"""What wakes the scheduler: commands, events and the clock."""
