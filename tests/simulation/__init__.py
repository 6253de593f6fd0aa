"""The whole federation in one process on a mock clock, and lists of operations against it: see federation.py."""
