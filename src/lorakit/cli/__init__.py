"""The command line: names and flags here, work elsewhere. Nothing in this room imports torch before
a command runs.
"""
