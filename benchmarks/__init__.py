"""What measures: this service beside its peer, its limits and the plain way."""
