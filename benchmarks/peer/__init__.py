"""The peer: vLLM serving its native Ultravox model, of the same shapes and with random weights."""
