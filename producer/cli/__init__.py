"""The commands of ``python -m producer``, a file for each kind; `group` holds what they share."""
