"""The published language of Tunewright: commands, events and reports. Imports msgspec and the standard library only."""
