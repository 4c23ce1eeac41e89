"""The jobs that wait: what is read of them, where a new one stands, and how it is queued."""
