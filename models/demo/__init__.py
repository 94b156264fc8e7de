"""The demo model: a small BLSP checkpoint trained from nothing on synthetic speech, and everything that makes it."""
