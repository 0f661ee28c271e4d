"""Virtual machine monitors: one process each, started, restored from a snapshot, saved and ended."""
