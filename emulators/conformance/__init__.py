"""What any driver must pass, on its emulator in CI and on the real unit with one option."""
