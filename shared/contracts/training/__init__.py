"""What a submitted training config means: checked once, the same way, by the gateway and by the trainer."""
