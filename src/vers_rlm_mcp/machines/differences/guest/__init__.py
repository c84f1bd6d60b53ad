"""Programs that run in machines: they list files, compare them, and receive new ones."""
