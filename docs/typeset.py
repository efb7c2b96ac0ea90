"""Typesets the displayed formulas of math.md, which are plain text in the source: readable in any editor.

An indented block is one display; columns that two or more blanks separate stay columns. Letters and what stands at them
(X^H, X_kd, X_bar) become mathematics, other words become text.
"""

import re

FUNCTIONS = {"diag", "trace", "tr", "min", "max", "sqrt", "exp", "log", "det", "argmin", "sign"}
GREEK = set("Pi xi zeta rho eta eps lambda sigma phi Phi theta alpha beta gamma tau".split())
SYMBOLS = {
    "<=": r"\le ", ">=": r"\ge ", "!=": r"\ne ", "=>": r"\;\Rightarrow\;", "->": r"\to ", "...": r"\dots ",
    "<": r"\lt ", ">": r"\gt ", "*": r"\cdot ", "{": r"\{", "}": r"\}", "%": r"\%", "#": r"\#", "&": r"\&",
    "~": r"\sim ", "`": "", "$": r"\$", "\\": r"\setminus ",
}
TOKEN = re.compile(
    r"(?P<name>[A-Za-z]+)(?P<marks>(?:_bar|_hat|_\([^()]*\)|_[A-Za-z0-9]+|\^\([^()]*\)|\^-?[A-Za-z0-9]+|\^\+)*)"
    r"|(?P<power>(?<=[\])}|])[_^](?:\([^()]*\)|-?[A-Za-z0-9]+|\+))"
    r"|(?P<symbol><=|>=|!=|=>|->|\.\.\.|[<>*{}%#&~`$\\])"
)


def _script(mark: str) -> str:
    body = mark[1:].strip("()")
    word, letters = re.fullmatch("[a-z]{3,}", body), re.fullmatch("-?[A-Za-z0-9]{1,3}", body)
    return mark[0] + "{" + (rf"\text{{{body}}}" if word else body if letters else _line(body)) + "}"


def _letter(name: str) -> str:
    if name in GREEK:
        return "\\" + {"eps": "varepsilon"}.get(name, name)
    return name


def _name(name: str, marks: str) -> str:
    if name == "o" and not marks:
        return r"\circ "
    if name in FUNCTIONS or name in ("Re", "conj", "sum"):
        body = {"sum": r"\sum ", "Re": r"\operatorname{Re}"}.get(name, rf"\operatorname{{{name}}}")
    elif name in GREEK or len(name) == 1:
        body = _letter(name)
    elif name[0] == "d" and (len(name) == 2 or name[1:] in GREEK):
        body = r"\mathrm{d}" + _letter(name[1:])
    elif len(name) == 2 and name.isupper():
        body = name[0] + r"\," + name[1]
    else:
        return rf"\text{{{name}}}" + "".join(_script(mark) for mark in re.findall(r"[_^](?:\([^()]*\)|[^_^]+)", marks))
    for mark in re.findall(r"[_^](?:\([^()]*\)|[^_^]+)", marks):
        if mark in ("_bar", "_hat"):
            body = rf"\{mark[1:]}{{{body}}}"
        else:
            body += _script(mark)
    return body


def _line(text: str) -> str:
    def replace(match: re.Match) -> str:
        if match["name"]:
            return _name(match["name"], match["marks"])
        if match["power"]:
            return _script(match["power"])
        return SYMBOLS[match["symbol"]]

    made = TOKEN.sub(replace, text)
    # A blank between words of text is a blank of the text, and one beside mathematics, too.
    return re.sub(r"(\\text\{[^{}]*)\}(,?) +", r"\1\2 }", re.sub(r"([^ {(]) +(?=\\text\{)", r"\1\\ ", made))


def display(block: list[str]) -> str:
    """Lines of plain text as one display."""
    rows = []
    for text in block:
        indent = r"\quad " if text.startswith("    ") else ""
        text = re.sub(r" *(?<![<>!])=(?!>) +| +=(?!>) *", " = ", text.strip())
        rows.append(indent + r" \qquad ".join(_line(part) for part in re.split(r" {2,}", text)))
    return "\n".join(["$$", r"\begin{array}{l}", " \\\\\n".join(rows), r"\end{array}", "$$"])


def typeset(source: str) -> str:
    """Markdown with each indented block as a display."""
    out: list[str] = []
    block: list[str] = []
    fenced = False
    for line in [*source.split("\n"), "end"]:
        fenced ^= line.startswith("```")
        if line.startswith("    ") and not fenced and (block or not out or not out[-1].strip()):
            block.append(line[4:])
            continue
        if block and not line.strip():
            block.append("")
            continue
        if block:
            while not block[-1]:
                block.pop()
            out += [display([text for text in block if text]), ""]
            block = []
        out.append(line)
    return "\n".join(out[:-1])
