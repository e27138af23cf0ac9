"""Standard sessions whose identity stays with the PKI and whose secrecy comes from QKD."""
