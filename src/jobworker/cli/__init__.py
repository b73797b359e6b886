"""jobctl, the command line."""
