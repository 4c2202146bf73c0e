"""The entrants of the benchmark: programs that receive jobs on standard input."""
