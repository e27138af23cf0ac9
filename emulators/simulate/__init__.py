"""`qkdhw link simulate`: a link from a preset, as event files, numbers and plots."""
