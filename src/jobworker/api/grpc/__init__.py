"""gRPC over mutual TLS."""
