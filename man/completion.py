"""Completion for bash, zsh and fish, from the declarations in passthru/: written by make.py."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from passthru import commands, options

MOUNTS = "awk '$3 ~ /^fuse[.]?passthru$/ {print $2}' /proc/self/mounts"
OF_A_MOUNT = ("status", "set", "stats", "top")  # what follows is a mountpoint


@dataclass(frozen=True)
class Option:
    """What is typed: its names, whether it takes a value, and which ones if that is known."""

    names: tuple[str, ...]
    text: str
    takes: bool = False
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class Command:
    """A subcommand; name '': a mount."""

    name: str
    text: str
    options: list[Option] = field(default_factory=list)


def words_of(metavar: object) -> tuple[str, ...]:
    """The values that a metavar such as auto|on|off names."""
    text = str(metavar or "")
    return tuple(text.split("|")) if "|" in text else ()


def brief(text: object) -> str:
    """The first clause of a help text."""
    said = str(text or "").replace("%%", "%").partition(";")[0].partition(" (")[0]
    return said if len(said) <= 60 else said[:60].rpartition(" ")[0].rstrip(",:")


def declared(parser: argparse.ArgumentParser, *, of_mount: bool) -> list[Option]:
    """The options of a parser: all, or those that are not of a mount."""
    return [Option(tuple(a.option_strings), brief(a.help), a.nargs != 0, words_of(a.metavar))
            for a in parser._actions
            if a.option_strings and a.help != argparse.SUPPRESS and (of_mount or not getattr(a, "of_mount", False))]


def mount_words() -> list[tuple[str, tuple[str, ...]]]:
    """(word of -o, its values); a word that takes a value ends in '='."""
    found = []
    for f in options._declared():
        m = f.metadata
        if m["o"] and not m["hidden"]:
            found.append((m["o"] + "=" * bool(m["parse"]), words_of(m["metavar"])))
            found += [(m["no"], ())] if m["no"] else []
    return found + [(a.o + "=" * bool(a.value_of), ()) for a in options.ALIASES if a.o]


def model(parser_of: Callable[[str], argparse.ArgumentParser]) -> list[Command]:
    """The mount first, then the subcommands."""
    found = [Command("", "mount", declared(options.parser(), of_mount=True))]
    for name, (_, text) in commands.COMMANDS.items():
        found.append(Command(name, brief(text), declared(parser_of(name), of_mount=name == "check")))
    return found


HEAD = "# Completion of passthru, written by man/make.py: do not edit.\n"


def bash(model: Iterable[Command]) -> str:
    """For bash-completion's directory, or to be sourced."""
    out = [HEAD + """_passthru() {
    local line=${COMP_LINE:0:COMP_POINT} cur=${COMP_WORDS[COMP_CWORD]} before word last
    word=${line##* }; before=${line%"$word"}; before=${before%"${before##*[! ]}"}; before=${before##* }
    [[ $cur == '=' ]] && cur=
    last=${word##*,}
    local words= options= names= command=
    COMPREPLY=()
    if (( COMP_CWORD > 1 )); then command=${COMP_WORDS[1]}; fi
    case $command in"""]
    for c in model:
        pattern = c.name or "*"
        names = " ".join(n for o in c.options for n in o.names)
        text = f"    {pattern})\n        options='{names}'\n        case $before in\n"
        for o in c.options:
            if o.takes and o.names != ("-o",):
                text += f"        {'|'.join(o.names)}) words='{' '.join(o.values)}'; names=value ;;\n"
        text += "        esac ;;"
        if c.name:
            out.insert(1, text)
        else:
            mount = text
    body, commands_ = out[1:], " ".join(c.name for c in model if c.name)
    values = "".join(f"            {w}) words='{' '.join(v)}' ;;\n" for w, v in mount_words() if v)
    return "\n".join([out[0], *reversed(body), mount, "    esac", f"""    if [[ $before == -o ]]; then
        if [[ $last == *=* ]]; then
            case ${{last%%=*}}= in
{values}            esac
            COMPREPLY=($(compgen -W "$words" -- "${{last#*=}}"))
        else
            words='{" ".join(w for w, _ in mount_words())}'
            COMPREPLY=($(compgen -P "${{word%"$last"}}" -W "$words" -- "$last"))
            [[ ${{COMPREPLY[*]}} == *= ]] && compopt -o nospace
        fi
        return
    fi
    if [[ $names == value ]]; then
        COMPREPLY=($(compgen -W "$words" -- "$cur"))
        [[ -n $words ]] || COMPREPLY=($(compgen -f -- "$cur"))
        return
    fi
    if [[ $cur == -* ]]; then
        COMPREPLY=($(compgen -W "$options" -- "$cur"))
        return
    fi
    case $command in
    help) COMPREPLY=($(compgen -W '{commands_}' -- "$cur")); return ;;
    {"|".join(OF_A_MOUNT)}) COMPREPLY=($(compgen -W "$({MOUNTS})" -- "$cur")) ;;
    esac
    if (( COMP_CWORD == 1 )); then COMPREPLY=($(compgen -W '{commands_}' -- "$cur")); fi
    compopt -o filenames 2>/dev/null
    COMPREPLY+=($(compgen -f -- "$cur"))
}}
complete -F _passthru passthru
"""])


def _quoted(text: str) -> str:
    return text.replace("'", "'\\''")


def zsh(model: list[Command]) -> str:
    """For a directory of fpath."""
    def line(name: str, o: Option) -> str:
        text = _quoted(o.text.replace("[", "(").replace("]", ")").replace(":", " -"))
        value = "" if not o.takes else ":value:_passthru_words" if name == "-o" else (
            f":value:({' '.join(o.values)})" if o.values else ":value:_files")
        return f"'*{name}[{text}]{value}'"

    out = ["#compdef passthru\n" + HEAD]
    words = " ".join(f"'{w}'" for w, _ in mount_words())
    out.append(f"_passthru_words() {{\n    _values -s , 'mount option' {words.replace('=', ':value:')}\n}}\n")
    out.append(f"_passthru_mounts() {{\n    compadd -- ${{(f)\"$({MOUNTS})\"}}\n}}\n")
    listed = " ".join(f"'{c.name}:{_quoted(c.text)}'" for c in model if c.name)
    out.append(f"_passthru() {{\n    local -a subcommands=({listed})\n"
               "    if (( CURRENT == 2 )) && [[ $words[2] != -* ]]; then\n"
               "        _describe subcommand subcommands\n        _files\n        return\n    fi\n"
               "    case $words[2] in")
    names = " ".join(c.name for c in model if c.name)
    for c in sorted(model, key=lambda c: not c.name):
        what = "mountpoint:_passthru_mounts" if c.name in OF_A_MOUNT else (
            f"subcommand:({names})" if c.name == "help" else "file:_files")
        ends = f"'*:{what}'"
        lines = " \\\n            ".join([*(line(n, o) for o in c.options for n in o.names), ends])
        out.append(f"    {c.name or '*'})\n        _arguments -S \\\n            {lines} ;;")
    return "\n".join([*out, "    esac\n}\n\n_passthru \"$@\"\n"])


def fish(model: Iterable[Command]) -> str:
    """For a directory of fish_complete_path."""
    names = " ".join(c.name for c in model if c.name)
    out = [HEAD + f"set -l subcommands {names}"]
    for c in model:
        if c.name:
            out.append(f"complete -c passthru -n __fish_use_subcommand -a {c.name} -d '{_fish(c.text)}'")
        when = f"__fish_seen_subcommand_from {c.name}" if c.name else "not __fish_seen_subcommand_from $subcommands"
        if c.name in OF_A_MOUNT:
            out.append(f"complete -c passthru -n '{when}' -a \"({MOUNTS.replace('$', chr(92) + '$')})\"")
        if c.name == "help":
            out.append(f"complete -c passthru -n '{when}' -f -a \"$subcommands\"")
        for o in c.options:
            forms = " ".join(f"-l {n[2:]}" if n.startswith("--") else f"-s {n[1:]}" for n in o.names)
            value = ""
            if o.names == ("-o",):
                value = f" -x -a '(__fish_append , {' '.join(w for w, _ in mount_words())})'"
            elif o.takes:
                value = f" -x -a '{' '.join(o.values)}'" if o.values else " -r"
            quote = '"' if "$" in when else "'"
            out.append(f"complete -c passthru -n {quote}{when}{quote} {forms}{value} -d '{_fish(o.text)}'")
    return "\n".join(out) + "\n"


def _fish(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "\\'")
