"""The command line: flags, and results printed for people; the work is done elsewhere.

Each command is a module with three functions (`lorakit.cli.__main__.Module`):

    add_flags(parser)      adds its arguments
    run(args) -> result    does the work and returns the JSON object of the result
    show(result)           prints the result for people

Torch is not imported before `run` is called, so that `--help` is fast. The flags of a command are
the fields of a dataclass, made with `lorakit.spec.option`.
"""
