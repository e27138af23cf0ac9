"""The main job from end to end, on emulated units: `qkdhw demo`."""
