"""jobworkerd, the server program: configuration and composition."""
