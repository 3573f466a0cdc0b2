"""Numbers about adapters: spectra, overlap, attention, and the report of `inspect`."""
