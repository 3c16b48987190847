"""Decides when the next call is sent: rate controller and pacer."""
