"""Public fakes and conformance suites: what a driver or a policy must do, as a function that anyone can call."""
