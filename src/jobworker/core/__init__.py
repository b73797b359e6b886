"""The vocabulary of jobs: pure values and decisions, standard library only."""
