"""Pictures compared point by point: whether two images show the same one."""
