"""When to send the next call."""
