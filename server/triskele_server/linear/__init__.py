"""What a party does alone on the shares it holds: expand, sketch, multiply, combine. No communication, no CrypTen.

Everything is a function of a range of words, so chunks can run on any `concurrent.futures.Executor` and shares can
be addressed by chunk.
"""
