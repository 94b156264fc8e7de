"""Behaviour alignment, what comes before it, and their batches. Knows nothing about audio formats or vLLM."""
