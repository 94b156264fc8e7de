"""`blsp batch`: files of requests, answered without a server."""
