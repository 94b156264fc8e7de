"""The edge: from an HTTP request to the parts below, and back."""
