"""What is known of the service and its requests while they run and afterwards."""
