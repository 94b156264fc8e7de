"""From the bytes of a file, as they arrive, to mono 16 kHz samples."""
