"""Rules applied to a graph: which axes live or die together, and how each is masked."""
