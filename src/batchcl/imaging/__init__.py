"""Decodes images, fits them to the service's limits, and draws labels. Needs Pillow (the extra `images`)."""
