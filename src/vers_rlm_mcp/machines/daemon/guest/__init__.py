"""What runs in machines. Nothing of it is imported here: it is sent over as it is written."""
