"""Source, fibre, detectors and eavesdroppers: one seeded truth for both ends."""
