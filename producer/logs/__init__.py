"""Logs: a line for each event, as text for people or, with POSTERS_LOG=json, as JSON for programs."""
