"""The pipeline: paths to chunks to device to store."""
