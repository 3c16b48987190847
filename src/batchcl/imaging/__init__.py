"""What needs decoded pixels: making images fit the service's rules, and drawing what it saw. Needs Pillow, an extra."""
