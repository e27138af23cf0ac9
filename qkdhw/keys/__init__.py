"""The key store: wrapped keys only, durable before revealed, delivered at most once."""
