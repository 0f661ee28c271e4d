"""Traces: files of arrivals in the formats that are published, read as streams in order of time.

`open_trace` finds out what a file is by its header; `base` says what a trace is, and each format has a module.
"""
