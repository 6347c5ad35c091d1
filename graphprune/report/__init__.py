"""What people look at: the page, the dependency graph, listings, progress."""
