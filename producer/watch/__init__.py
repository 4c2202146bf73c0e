"""Watch mode: follow file system events and index what changed."""
