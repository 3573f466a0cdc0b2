"""The command line: flags, and results printed for people; the work is done elsewhere.

Each command is a module with three functions: `add(parser)` adds its flags, `main(args)` returns
the JSON object of its result, and `show(result)` prints it for people. Nothing in this room imports
torch before a command runs.
"""
