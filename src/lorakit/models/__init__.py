"""Models: loading, a base with an adapter, and ways to need less memory."""
