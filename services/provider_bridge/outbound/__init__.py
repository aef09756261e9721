"""Whom the bridge calls: providers, and its own lease rows."""
