"""What the three parties do together: CrypTen's tensor language on three-party replicated secret sharing.

Map of this package, bottom up:

    transport.py       labelled frames between parties; threads in one process (gRPC: rpc/peer.py)
    randomness.py      AES-CTR under pairwise keys: zero sharings, masks and values dealt
    opening_ledger.py  what a round may open
    session.py         one party's end of one computation: its index, frames, randomness and ledger; `open` lives here
    arithmetic.py      shares mod 2^64: reshare, multiply, matmul, bit to word, truncation
    carry_tree.py      what each party computes by itself in a comparison
    boolean.py         comparisons: the top bit of a sum
    replicated.py      the CrypTen tensor type "replicated" that the rules are written with
    crypten_import.py  the only module that imports crypten
"""
