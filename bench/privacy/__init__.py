"""What the privacy of the aggregate costs and is worth."""
