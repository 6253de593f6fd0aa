"""What the three parties do together: CrypTen's tensor language on three-party replicated secret sharing.

Map of this package, bottom up:

    transport.py       labelled frames between parties; threads in one process (gRPC: rpc/peer.py)
    randomness.py      AES-CTR under pairwise keys: zero sharings, and values dealt by party 0
    opening_ledger.py  what a round may open
    session.py         one party's end of one computation: its index, frames, randomness and ledger; `open` lives here
    arithmetic.py      shares mod 2^64: reshare, multiply, matmul, bit to word, truncation
    boolean.py         shares of bits: and, top bit of a sum, all bits of a sum
    replicated.py      the CrypTen tensor type "replicated" that the rules are written with
    crypten_import.py  the only module that imports crypten
"""
