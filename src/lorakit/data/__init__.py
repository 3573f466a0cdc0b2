"""From files to token ids: rows.py reads and checks, encode.py tokenises and masks, batches.py
orders and pads.
"""
