"""Files of detection events: read and write."""
