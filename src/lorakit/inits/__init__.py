"""Where A and B start."""
