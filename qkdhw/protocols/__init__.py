"""QKD protocols: sifting rules and key-length proofs, found through the entry-point group qkdhw.protocols."""
