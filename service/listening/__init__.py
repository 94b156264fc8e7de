"""From samples to speech embeddings: windows of all requests, encoded together, and remembered."""
