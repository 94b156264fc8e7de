"""The commands that make an adapter, and measure whether it fits its LLM."""
