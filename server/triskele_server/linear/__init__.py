"""What a party does alone on the shares it holds: expand, sketch, multiply, combine. No communication, no CrypTen.

Each goes over the words of all shares once, in order and a chunk at a time, on the caller's thread.
"""
