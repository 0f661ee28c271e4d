"""When a queue leaves and how large: one rule a file, `base` has the interface."""
