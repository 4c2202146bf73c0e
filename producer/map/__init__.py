"""The vectors of a space in two dimensions: computed in a process of its own, kept in a file, drawn."""
