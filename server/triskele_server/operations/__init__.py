"""What operators ask of a federation from the command line: preflight, status."""
