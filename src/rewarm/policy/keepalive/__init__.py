"""How long an idle layer is worth its memory: one rule a file, `base` has the interface."""
