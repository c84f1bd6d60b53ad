"""Code that runs in machines. The host does not import it, but sends it unchanged."""
