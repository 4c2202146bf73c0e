"""Who takes part in the benchmark: a program each, asked over standard input, so that none disturbs another."""
