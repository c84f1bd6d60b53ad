"""Programs for machines: they tell what lies there, compare it, and take files in."""
