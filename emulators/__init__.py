"""Software that stands in for QKD hardware, byte for byte. Installed as qkdhw_emulators."""
