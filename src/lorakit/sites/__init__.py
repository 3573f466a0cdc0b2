"""Sites: the kinds of layers that can be adapted, and the way each stores its matrix."""
