"""Containers: two images, a compose file's secrets and settings, and the smoke run that proves them."""
