"""Typed access to a jobworkerd for Python programs."""
