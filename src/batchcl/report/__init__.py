"""Pictures with their results, and the report of a run as one HTML file."""
