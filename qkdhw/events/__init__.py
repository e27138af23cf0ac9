"""From detection events of two sites to slots: clock alignment and gating."""
