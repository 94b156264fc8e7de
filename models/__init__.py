"""The networks, prompts, checkpoints and training of BLSP. Knows nothing about HTTP or vLLM."""
