"""What wakes the bridge."""
