"""What must survive power loss: one SQLite database."""
