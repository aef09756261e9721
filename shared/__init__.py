"""What every service shares: the published language, the log, the bus, and nothing that decides business."""
