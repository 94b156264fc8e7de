"""What the encoder and the whole service do on a GPU."""
