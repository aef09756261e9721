"""HTTP routes: decode, call one handler, encode."""
