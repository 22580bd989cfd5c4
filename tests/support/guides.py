"""What the documentation's fenced blocks say, and which of their commands no test can run."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.md"), *ROOT.glob("examples/*/README.md"), *sorted((ROOT / "docs").glob("*.md")))
]

NOT_RUN = {
    r"make ": "targets of the Makefile: installations and these tests; the demo has tests/test_demo.py",
    r"\. ": "the shell's own",
    r"pip install ": "changes the environment; that the extras exist is tested",
    r"powerclip explore ": "serves its page until it is interrupted; tests/explore clicks through it",
    r"(\.venv/bin/)?python examples/": "has a test of its own in tests/examples",
    r"python (benchmarks|experiments)/": "minutes to hours of measurements; the experiments' driver has tests",
    r"python -m pytest ": "tests",
    r"powerclip .*--ray ": "needs a Ray cluster; one on this machine is in tests/prepare/test_workers.py",
    r"powerclip .*--pretrained laion2b_s34b_b79k ": "weights to be downloaded",
    r"powerclip train --recipe cc12m_vit_b16 --data /data/cc12m ": "of a Slurm script; tests/train has its signal",
}
"""Commands that are only read, as the beginning of a regular expression, and why."""


def blocks(page):
    """(language, text) of all fenced blocks of a page, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def steps(page, **replaced):
    """Its programs in Python, each a text, and its shell commands, each a list of words; of a script, what it executes.

    Variables are what the page sets them to, unless replaced.
    """
    variables = {}
    for language, text in blocks(page):
        if language == "python":
            yield text
        if language != "bash":
            continue
        if text.startswith("#!"):
            text = "\n".join(re.findall(r"exec (powerclip [^']*)'", text))
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and (assigned := re.fullmatch(r"(\w+)=(.*)", words[0])):
                variables[assigned[1]] = replaced.pop(assigned[1], assigned[2])
            elif words:
                yield [variables[word[1:]] if word.startswith("$") else word for word in words]
    assert not replaced, "the page sets no such variable"


def why_not_run(words):
    """The pattern of a command that is only read, or None."""
    line = " ".join(words) + " "
    return next((pattern for pattern in NOT_RUN if re.match(pattern, line)), None)
