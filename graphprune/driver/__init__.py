"""From a program to files: the artifact, the search for a latency, sensitivity."""
