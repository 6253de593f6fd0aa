"""The learning half of ``triskele demo``: face recognition trained by participants, some of them malicious.

Nothing here is needed to run a server. This package is the only place where numpy's generators may be used: they
decide data splits, batches and attacks of the demo, never a secret.
"""
