"""The model that ships: Whisper base, SmolLM2 and an adapter; what makes it."""
