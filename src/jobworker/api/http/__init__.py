"""The HTTPS door: bearer tokens, JSON, TLS 1.3."""
