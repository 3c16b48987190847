"""Questions to the results, answered lazily by polars."""
