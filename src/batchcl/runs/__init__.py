"""The output root: layout, store, work list, journal, published tables, run lease. Only this package writes to it."""
