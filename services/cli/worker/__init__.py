"""The agent of an own worker: pulls jobs from a gateway, one at a time, and runs them on this machine."""
