"""Real sockets, terminals and USB devices behind which emulated units are found like the hardware."""
