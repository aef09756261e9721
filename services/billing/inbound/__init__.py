"""What wakes billing: commands and events."""
