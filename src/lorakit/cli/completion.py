"""`lorakit completion`: a script for a shell, and the words that the script asks for."""

import argparse
import re
import shlex
from collections.abc import Iterable, Iterator
from glob import escape, glob
from pathlib import Path
from typing import TypedDict

from lorakit.errors import SpecError

BUILTIN = re.compile(r"builtin:[\w-]+")
# Each script passes the line up to the cursor, and gets back words with a purpose behind a tab. If
# there are none, the shell offers files.
SCRIPTS = {
    "bash": r"""
_lorakit() {
    local line="${COMP_LINE:0:COMP_POINT}" word
    COMPREPLY=()
    while IFS=$'\t' read -r word _; do
        COMPREPLY+=("$word")
    done < <("$1" completion --line "$line" 2>/dev/null)
    # Bash itself completes behind the last colon.
    local last="${line##* }"
    local before="${last%"${last##*:}"}"
    if [[ $COMP_WORDBREAKS == *:* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"$before"}")
    fi
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == */ ]]; then
        compopt -o nospace 2>/dev/null
    fi
}
complete -o default -F _lorakit lorakit
""",
    "zsh": r"""
_lorakit() {
    local -a found shown
    found=("${(@f)$("${words[1]}" completion --line "${(j: :)words[1,CURRENT]}" 2>/dev/null)}")
    found=(${found:#})
    if (( ! ${#found} )); then
        _files
        return
    fi
    shown=("${(@)found/$'\t'/  }")
    compadd -l -d shown -- "${(@)found%%$'\t'*}"
}
compdef _lorakit lorakit
""",
    "fish": r"""
function __lorakit_complete
    set -l found (lorakit completion --line (commandline -cp | string collect) 2>/dev/null)
    if set -q found[1]
        string join \n $found
    else
        __fish_complete_path (commandline -ct)
    end
end
complete -c lorakit -f -a '(__lorakit_complete)'
""",
}
START = {
    "bash": "in ~/.bashrc:  source <(lorakit completion bash)",
    "zsh": "in ~/.zshrc, after compinit:  source <(lorakit completion zsh)",
    "fish": "lorakit completion fish > ~/.config/fish/completions/lorakit.fish",
}


class CompletionResult(TypedDict):
    """Result of `completion`: a script, or words that complete a line, each with its purpose."""

    script: str
    words: dict[str, str]


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "shell",
        nargs="?",
        choices=tuple(SCRIPTS),
        help="shell of the script; the top of it says where the script belongs",
    )
    parser.add_argument("--line", metavar="TEXT", help="complete this line; the scripts use it")


def run(args: argparse.Namespace) -> CompletionResult:
    if args.line is not None:
        return {"script": "", "words": complete_line(args.line)}
    if args.shell is None:
        raise SpecError(
            "A shell is needed: bash, zsh or fish.",
            list(START.values()),
        )
    head = "#compdef lorakit\n" if args.shell == "zsh" else ""
    script = f"{head}# {START[args.shell]}\n{SCRIPTS[args.shell].lstrip()}"
    return {"script": script, "words": {}}


def show(result: CompletionResult) -> None:
    print(result["script"], end="")
    for word, purpose in result["words"].items():
        print(f"{word}\t{purpose}".rstrip())


def complete_line(line: str) -> dict[str, str]:
    """Return the words that complete the last word of a line, each with its purpose.

    >>> complete_line("lorakit train --schedule l")
    {'linear': ''}
    >>> complete_line("lorakit gen")
    {'generate': 'generate text, with or without an adapter'}
    """
    words = _split_line(line)[1:]
    if not words:
        return {}
    *before, word = words
    return {found: text for found, text in _offer(before, word) if found.startswith(word)}


def _split_line(line: str) -> list[str]:
    """Return the words of a line as a shell has them; the last one is empty after a space."""
    try:
        words = shlex.split(line)
    except ValueError:  # of a quotation mark that is still open
        words = line.split()
    is_new = line[-1:].isspace() and not line.endswith("\\ ")
    return [*words, ""] if is_new else words


def _offer(before: list[str], word: str) -> Iterator[tuple[str, str]]:
    """Yield the words that may follow others, each with its purpose."""
    from lorakit.cli.__main__ import COMMANDS, parser_for

    if not before:
        for name, command in COMMANDS.items():
            yield name, command.purpose
        yield from (("--help", "show the commands"), ("--version", "print the version"))
        return
    if before[0] not in COMMANDS:
        return
    actions = parser_for(before[0])._actions
    if word.startswith("-"):
        yield from _flags(actions, before)
        return
    action = _find_action(actions, before[1:])
    if action is not None:
        yield from _values(action, word)


def _flags(actions: Iterable[argparse.Action], before: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the flags that a line does not have yet."""
    for action in actions:
        if not set(action.option_strings) & set(before):
            purpose = re.split(r"[;:(]", action.help or "")[0].replace("%%", "%").strip()
            for flag in action.option_strings:
                if flag.startswith("--"):
                    yield flag, purpose


def _find_action(actions: list[argparse.Action], before: list[str]) -> argparse.Action | None:
    """Return the flag, or else the positional argument, whose value the next word is."""
    for distance, earlier in enumerate(reversed(before)):
        flag = next((one for one in actions if earlier in one.option_strings), None)
        takes_several = flag is not None and flag.nargs in ("+", "*")
        if flag is not None and flag.nargs != 0 and (distance == 0 or takes_several):
            return flag
        if flag is not None:
            break
    return next((one for one in actions if not one.option_strings), None)


def _values(action: argparse.Action, word: str) -> Iterator[tuple[str, str]]:
    """Yield the choices of an argument, or builtin names with the files; none for files alone."""
    for choice in action.choices or ():
        yield str(choice), ""
    builtin = BUILTIN.findall(action.help or "")
    for name in builtin:
        yield name, ""
    for path in sorted(glob(f"{escape(word)}*")) if builtin else ():
        yield (f"{path}/" if Path(path).is_dir() else path), ""
