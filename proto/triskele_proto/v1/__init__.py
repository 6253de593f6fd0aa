"""Version 1 of the wire protocol (package triskele.v1)."""
