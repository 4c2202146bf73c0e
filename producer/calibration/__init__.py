"""Calibration: thresholds for verdicts, measured on variants of a sample of the collection."""
