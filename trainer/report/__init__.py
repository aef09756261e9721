"""Numbered reports: made, kept on disk, delivered."""
