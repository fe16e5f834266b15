"""Generated from proto/coproc/v1; a test regenerates and compares."""
