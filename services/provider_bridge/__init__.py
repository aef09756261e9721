"""The provider-bridge: owns attempts, and is the only service that talks to GPU providers."""
