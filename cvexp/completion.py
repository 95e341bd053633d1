"""Shell completion of `cvexp` and of `python -m cvexp`.

Hydra's own completion supports programs that are one word or a file, but not `python -m`.
"""

from __future__ import annotations

INSTALL = r"""_cvexp_complete() {
    local line=${COMP_LINE:0:COMP_POINT} program=("${COMP_WORDS[0]}")
    if [[ ${program[0]##*/} == python* ]]; then
        [[ $line =~ ^[^[:space:]]+[[:space:]]+-m[[:space:]]+cvexp[[:space:]](.*)$ ]] || return
        program+=(-m cvexp)
    else
        [[ $line =~ ^[^[:space:]]+[[:space:]](.*)$ ]] || return
    fi
    local arguments=${BASH_REMATCH[1]} said=""
    local word=${arguments##* }
    # If "=" separates words, Readline replaces only what follows the last one.
    [[ $COMP_WORDBREAKS == *=* && $word == *=* ]] && said="${word%=*}="
    local found
    found=$(COMP_LINE="cvexp $arguments" "${program[@]}" -sc query=bash 2> /dev/null)
    COMPREPLY=($(compgen -W "$found" -- "$word"))
    COMPREPLY=("${COMPREPLY[@]#"$said"}")
}
complete -o nospace -o default -F _cvexp_complete cvexp python python3"""

UNINSTALL = "complete -r cvexp python python3; unset -f _cvexp_complete"


def script(arguments: list[str]) -> str | None:
    """Return the Bash code for `-sc install=bash` or `-sc uninstall=bash`, or None for other arguments."""
    if not {"-sc", "--shell-completion"} & set(arguments):
        return None
    return next((text for word, text in SCRIPTS.items() if word in arguments), None)


SCRIPTS = {"install=bash": INSTALL, "uninstall=bash": UNINSTALL}
