"""How the outcome of a round leaves the parties. In this version a release is public to the federation: the parties
hand the words to the coordinator. Masks, noise and certificates have their place here."""
