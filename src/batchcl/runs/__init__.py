"""The only room that writes the output root."""
