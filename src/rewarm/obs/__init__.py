"""What an operator sees: counters and histograms for Prometheus, per-function figures, logs of user code."""
