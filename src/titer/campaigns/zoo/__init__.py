"""Every defence tuned and attacked alike."""
