"""Typesets the formulas of math.md, which are plain text in the source: readable in any editor.

An indented block is one display; columns that two or more blanks separate stay columns. Letters and what stands at them
(X^H, X_kd, X_bar) become mathematics, other words become text. Within a sentence a formula is a sequence of words that
are made of such letters, numbers, brackets and operators.
"""

import re

FUNCTIONS = {"LA", "diag", "trace", "tr", "min", "max", "sqrt", "exp", "log", "det", "argmin", "sign"}
GREEK = set("Pi xi zeta rho eta eps lambda sigma phi Phi theta alpha beta gamma tau".split())
SYMBOLS = {
    "<=": r"\le ", ">=": r"\ge ", "!=": r"\ne ", "=>": r"\;\Rightarrow\;", "->": r"\to ", "...": r"\dots ",
    "<": r"\lt ", ">": r"\gt ", "*": r"\cdot ", "{": r"\{", "}": r"\}", "%": r"\%", "#": r"\#", "&": r"\&",
    "~": r"\sim ", "`": "", "$": r"\$", "\\": r"\setminus ",
}
TOKEN = re.compile(
    r"(?P<name>l2|[A-Za-z]+)(?P<marks>(?:_bar|_hat|_\([^()]*\)|_\{[^{}]*\}|_[A-Za-z0-9]+|\^\([^()]*\)|\^-?[A-Za-z0-9]+|\^\+)*)"
    r"|(?P<power>(?<=[\])}|])[_^](?:\([^()]*\)|\{[^{}]*\}|-?[A-Za-z0-9]+|\+))"
    r"|(?P<symbol><=|>=|!=|=>|->|\.\.\.|[<>*{}%#&~`$\\])"
)
MARK = re.compile(r"[_^](?:\([^()]*\)|\{[^{}]*\}|[^_^]+)")


def _script(mark: str) -> str:
    body = mark[1:].strip("(){}")
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
    elif name == "l2":
        body = "{l2}"
    elif name[0] == "d" and (len(name) == 2 or name[1:] in GREEK):
        body = r"\mathrm{d}" + _letter(name[1:])
    elif len(name) == 2 and name.isupper():
        body = name[0] + r"\," + name[1]
    else:
        return rf"\text{{{name}}}" + "".join(_script(mark) for mark in MARK.findall(marks))
    for mark in MARK.findall(marks):
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


def _angles(text: str) -> str:
    """Inner products <x, y> with brackets of their own: < and > beside a blank are comparisons."""
    return re.sub(r"<(?=[^\s=])([^<>]*?)(?<=[^\s=-])>", "⟨\\1⟩", text)


def _short_rows(block: list[str]) -> list[str]:
    """Columns that do not fit beside each other on a page, one below the other."""
    rows = []
    for line in block:
        indent, row = line[: len(line) - len(line.lstrip())], ""
        for column in re.split(r" {2,}", line.strip()):
            if row and len(row) + len(column) > 78 and not re.fullmatch(r"\(\d\)", column):
                rows.append(indent + row)
                row = ""
            row += ("    " if row else "") + column
        rows.append(indent + row)
    return rows


def display(block: list[str]) -> str:
    """Lines of plain text as one display."""
    rows = []
    for text in _short_rows(block):
        indent = r"\quad " if text.startswith("    ") else ""
        text = re.sub(r" *(?<![<>!])=(?!>) +| +=(?!>) *", " = ", _angles(text.strip()))
        rows.append(indent + r" \qquad ".join(_line(part) for part in re.split(r" {2,}", text)))
    return "\n".join(["$$", r"\begin{array}{l}", " \\\\\n".join(rows), r"\end{array}", "$$"])


_NAMES = "|".join(sorted(FUNCTIONS | GREEK | {"Re", "conj", "cond", "l2", "atol", "rtol"}, key=len)[::-1])
_MARK = r"(?:_\([^()\s]*\)|_\{[^{}\s]*\}|_[A-Za-z0-9]+|\^\([^()\s]*\)|\^-?[A-Za-z0-9]+|\^\+)"
_ATOM = (
    rf"(?:(?:{_NAMES}|sum(?=_)|(?:solve|softmax|rowsum|logsumexp)(?=\()|d(?:Re|Im|{'|'.join(GREEK)}|[A-Za-np-z])|[A-Za-z]){_MARK}*(?![A-Za-z0-9])"
    rf"|\d+(?:\.\d+)?(?![A-Za-z])|[)\]|}}>]{_MARK}*|<=|>=|!=|=>|->|\.\.\.|[-+=</([{{,])"
)
_WORD = re.compile(rf"(?:{_ATOM})+")
# After these a capital A is the matrix, before other small words the article.
_VERBS = set("is has and or in from itself with to of by moves are at on".split())


def _bare(words: list[str]) -> str:
    return " ".join(words).strip("*").rstrip(".,;:*")


def _balanced(text: str) -> bool:
    pairs = [(r"\(", r"\)"), (r"\[", r"\]"), (r"\{", r"\}"), (r"<(?=[^\s=])", r"(?<=[^\s=-])>")]
    return text.count("|") % 2 == 0 and all(len(re.findall(x, text)) == len(re.findall(y, text)) for x, y in pairs)


def _end_of_formula(words: list[str], i: int) -> int:
    """The end of the longest formula that begins with word ``i``; ``i`` if there is none."""
    best, j = i, i
    while j < len(words) and words[j] not in ("a", "|") and _WORD.fullmatch(_bare(words[j : j + 1])):
        j += 1
        text, after = _bare(words[i:j]), _bare(words[j : j + 1])
        article = text == "A" and re.fullmatch("[a-z]{2,}", after) and after not in _VERBS
        cut = re.search(r"(?<!\^)[-+=</,(]$| >$|^[-=+/]( |$)", text)
        if _balanced(text) and re.search("[A-Za-z]", text) and not article and not cut:
            best = j
        if words[j - 1] != words[j - 1].rstrip(".,;:*") and _balanced(text):
            break
    return best


def _prose(text: str) -> str:
    """Prose without code and links. A formula may stand behind an opening bracket of the sentence."""
    words, out, i = text.split(" "), [], 0
    while i < len(words):
        start = re.match(r"[*(]*", words[i])[0]
        for before in (start.rstrip("("), start):
            inner = [words[i][len(before) :], *words[i + 1 :]]
            end = _end_of_formula(inner, 0)
            if end:
                break
        if not end:
            out.append(words[i])
            i += 1
            continue
        body, after = re.fullmatch(r"(.*?)([.,;:*]*)", " ".join(inner[:end])).groups()
        body = _angles(re.sub(r"(?<=\b\w) x (?=\w\b)|(?<=\d) x (?=\d)", " × ", body))
        out.append(f"{before}${_line(body)}${after}")
        i += end
    return " ".join(out)


def inline(text: str) -> str:
    """A line of prose with its formulas between dollars; code, links and cells of tables with bars stay as they are."""
    parts = re.split(r"(`[^`]*`|\[[^\]]*\]\([^)]*\))", text)
    return "".join(part if i % 2 else _prose(part) for i, part in enumerate(parts))


def typeset(source: str) -> str:
    """Markdown with its formulas typeset."""
    out: list[str] = []
    block: list[str] = []
    fenced = False
    source, heading, references = source.partition("\n## References")  # initials of names are no formulas
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
        out.append(line if fenced or line.startswith(("#", "```")) or "](#" in line else inline(line))
    return "\n".join(out[:-1]) + heading + references
