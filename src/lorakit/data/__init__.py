"""Data, from files to token ids.

sources.py reads files, rows.py checks their rows, templates.py applies chat templates, encode.py
tokenises and masks, batches.py orders and pads.
"""
