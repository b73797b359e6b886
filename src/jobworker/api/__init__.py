"""The transports: decode, identify, call the service, encode."""
