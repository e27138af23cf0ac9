"""From sifted bits at two sites to one secret key: the two-party exchange, sans-I/O."""
