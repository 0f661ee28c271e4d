"""The control plane: carries the core's effects out, deploys, measures, and answers what an operator asks."""
