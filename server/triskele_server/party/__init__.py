"""A party: intake of shares, its own policy, and the rounds it computes with its two peers."""
