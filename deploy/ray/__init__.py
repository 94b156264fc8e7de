"""The service on Ray Serve; docs/ray.md tells how to run it."""
