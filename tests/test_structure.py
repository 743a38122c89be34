"""The house rules, read from the source: who imports whom, what is never done, what the documents name."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from parley.cli import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
OURS = ("chatbot", "common", "moderation", "parley", "retrieval", "tools", "training")
HEAVY = ("torch", "faiss", "transformers", "sentence_transformers", "datasets", "fastapi", "pydantic", "uvicorn")

# What each folder may import of ours. A name with a dot allows that module alone.
ALLOWED = {
    "common": (),
    "retrieval": ("common",),
    "moderation": ("common",),
    "chatbot": ("common", "retrieval", "moderation"),
    "training": ("chatbot.conversation", "chatbot.rendering", "chatbot.templates", "moderation", "common"),
    "tools": ("chatbot", "common", "moderation", "parley", "retrieval", "training"),
    "parley": ("common",),  # the rest by name, when a subcommand runs
}

# The same inside retrieval: each may import those before it.
RETRIEVAL = (
    *("types", "readers", "documents", "passages", "scoring", "encoding", "encoders", "index", "search", "confidence"),
    *("writing", "retriever", "hiding", "several", "measuring", "commands", "qdrant", "build", "__main__", "__init__"),
)


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def all_sources() -> list[Path]:
    return [path for package in OURS for path in sources(package)]


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def place(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


def module_exists(name: str) -> bool:
    base = ROOT.joinpath(*name.split("."))
    return base.with_suffix(".py").is_file() or (base / "__init__.py").is_file()


def imported_modules(tree: ast.Module, package: tuple[str, ...]) -> Iterator[tuple[ast.AST, str]]:
    """Every module of ours that a file in `package` imports, wherever in it, also by name (`chatbot.bot:cli`)."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from chatbot import api` imports chatbot.api
            names = [name if module_exists(name := f"{module}.{alias.name}") else module for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            named = re.fullmatch(r"(\w+(?:\.\w+)+|\w+(?=:))(?::\w+)?", node.value)
            names = [named[1]] if named and module_exists(named[1]) else []
        for name in names:
            if name.split(".")[0] in OURS:
                yield node, name


def imports_of(path: Path) -> list[tuple[ast.AST, str]]:
    return list(imported_modules(parse(path), path.relative_to(ROOT).parent.parts))


def allowed(package: str, module: str) -> bool:
    own_or_listed = (package, *ALLOWED[package])
    return any(module == each or module.startswith(f"{each}.") for each in own_or_listed)


@pytest.mark.parametrize("package", OURS)
def test_imports_go_only_in_the_agreed_direction(package):
    wrong = []
    for path in sources(package):
        for node, module in imports_of(path):
            by_name = isinstance(node, ast.Constant)
            if not allowed(package, module) and not (package == "parley" and by_name):
                wrong.append(f"{place(path, node)} imports {module}")
    assert wrong == []


def test_retrieval_imports_only_downwards():
    wrong = []
    for path in sources("retrieval"):
        own = path.relative_to(ROOT / "retrieval").parts[0].removesuffix(".py")
        for node, module in imports_of(path):
            parts = module.split(".")
            if parts[0] == "retrieval" and len(parts) > 1 and RETRIEVAL.index(parts[1]) > RETRIEVAL.index(own):
                wrong.append(f"{place(path, node)} imports {module}")
    assert wrong == []
    folders = {path.relative_to(ROOT / "retrieval").parts[0].removesuffix(".py") for path in sources("retrieval")}
    assert folders == set(RETRIEVAL)


def test_nobody_imports_tools_and_the_door():
    named = {
        (path.relative_to(ROOT).parts[0], module.split(".")[0])
        for path in all_sources()
        for _, module in imports_of(path)
    }
    assert {importer for importer, imported in named if imported == "tools"} <= {"parley", "tools"}
    assert {importer for importer, imported in named if imported == "parley"} <= {"parley", "tools"}
    assert ("chatbot", "training") not in named


def test_the_reader_of_imports_sees_every_form():
    # The rules above are worth as much as this.
    code = (
        "import retrieval.index.store as s, json\nfrom chatbot import api\nfrom ..core import Bot\nfrom . import echo\n"
        "def f():\n    from tools import prepare_model\n    return 'chatbot.session'\n"
        "TABLE = {'x': 'moderation.cli:cli', 'tools': 'a word', 'y': 'see retrieval.index.store'}\n"
    )
    found = {module for _, module in imported_modules(ast.parse(code), ("chatbot", "engines"))}
    by_statement = {
        "retrieval.index.store",
        "chatbot.api",
        "chatbot.core",
        "chatbot.engines.echo",
        "tools.prepare_model",
    }
    assert found == by_statement | {"chatbot.session", "moderation.cli"}


def test_importing_the_doors_loads_nothing_heavy():
    doors = "chatbot, chatbot.bot, chatbot.core, chatbot.session, chatbot.shell, chatbot.api.chat, chatbot.server.app"
    others = "retrieval.build, moderation.cli, parley.cli"
    code = f"import {doors}, {others}, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert set(HEAVY) & set(done.stdout.split()) == set()


# What is never done -------------------------------------------------------------------------------------------------

UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {
    "torch.load",
    "pickle.load",
    "pickle.loads",
    "os.system",
    "os.popen",
    "yaml.unsafe_load",
    "yaml.full_load",
    "eval",
    "exec",
}
# The one file that reads what torch has pickled, and says how nothing in it can run.
READS_PICKLES, MAY_READ = ROOT / "tools" / "torch_files.py", {"import pickle", "torch.load() of weights only"}
# setting -> the only value it may have
SAFE_SETTINGS = {"trust_remote_code": False, "shell": False, "allow_pickle": False, "weights_only": True}


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def settings_in(node: ast.AST) -> Iterator[tuple[object, ast.expr]]:
    """Names and values of keyword arguments, and of what may become one: dict items, `some["name"] = value`."""
    if isinstance(node, ast.Call):
        yield from ((keyword.arg, keyword.value) for keyword in node.keywords)
    elif isinstance(node, ast.Dict):
        named = zip(node.keys, node.values, strict=True)
        yield from ((key.value, value) for key, value in named if isinstance(key, ast.Constant))
    elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
        yield getattr(node.targets[0].slice, "value", None), node.value


def unsafe(node: ast.AST) -> str | None:
    """What is wrong with one node, or None."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        origin = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        found = {name.split(".")[0] for name in origin} & UNSAFE_MODULES
        return f"import {min(found)}" if found else None
    if isinstance(node, ast.ExceptHandler) and node.type is None:
        return "bare except"
    if isinstance(node, ast.Call) and dotted(node.func) in UNSAFE_CALLS:
        safer = any(each.arg == "weights_only" and getattr(each.value, "value", 0) is True for each in node.keywords)
        return f"{dotted(node.func)}()" + (" of weights only" if safer else "")
    for name, value in settings_in(node):
        if name in SAFE_SETTINGS and getattr(value, "value", None) is not SAFE_SETTINGS[name]:
            return f"{name} is {ast.unparse(value)}"
    return None


def test_nothing_unsafe_is_done():
    problems = [
        f"{place(path, node)}: {problem}"
        for path in all_sources()
        for node in ast.walk(parse(path))
        if (problem := unsafe(node)) and not (path == READS_PICKLES and problem in MAY_READ)
    ]
    assert problems == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from cloudpickle import dumps",
        "torch.load(path)",
        "torch.load(path, weights_only=True)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "AutoModel.from_pretrained(x, trust_remote_code=options.trust)",
        "settings = {'trust_remote_code': True}",
        "settings['trust_remote_code'] = options.trust",
        "subprocess.run(command, shell=True)",
        "eval(text)",
        "os.system(text)",
        "np.load(path, allow_pickle=True)",
        "try:\n    f()\nexcept:\n    pass",
    ],
)
def test_the_reader_of_unsafe_code_sees_it(code):
    assert any(unsafe(node) for node in ast.walk(ast.parse(code)))


def test_every_module_opens_with_a_docstring():
    assert [str(path.relative_to(ROOT)) for path in all_sources() if not ast.get_docstring(parse(path))] == []


# What the documents name ---------------------------------------------------------------------------------------------

PYTHON = re.compile(
    r"\bpython(?:3(?:\.\d+)?)?\s+(?:-m\s+(?P<module>[\w.]+)|(?P<file>[\w./-]+\.py))(?P<rest>[^\n`|;&]*)"
)
PARLEY = re.compile(r"^\s*(?:[$|;&]\s*)?parley[ \t]+(?P<name>[a-z][\w-]*)(?P<rest>[^\n`|;&]*)", re.MULTILINE)
MAKE = re.compile(r"^\s*(?:[$|;&]\s*)?make(?:[ \t]+-\w+)*[ \t]+(?P<target>[a-z][\w-]*)", re.MULTILINE)


def documents() -> list[Path]:
    return [ROOT / "README.md", *sorted(ROOT.glob("C*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def snippets(path: Path) -> list[str]:
    """The code in a Markdown file: fenced blocks (continued lines joined) and inline spans."""
    text = path.read_text(encoding="utf-8")
    fenced = re.findall(r"^ *```[^\n]*\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^ *```[^\n]*\n.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [each.replace("\\\n", " ") for each in [*fenced, *re.findall(r"`([^`\n]+)`", rest)]]


def targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z][\w-]*):(?!=)", makefile, re.MULTILINE))


def missing_from(name: str, text: str) -> list[str]:
    """What `text` tells people to run and is not there."""
    wrong = []
    for found in PYTHON.finditer(text):
        if (file := found["file"]) and not (ROOT / file).is_file():
            wrong.append(f"{name}: no file {file}")
        if module := found["module"]:
            top = module.split(".")[0]
            there = module_exists(module) if top in OURS else _is_known(top)
            if not there:
                wrong.append(f"{name}: no module {module}")
    wrong += [f"{name}: no target {each['target']}" for each in MAKE.finditer(text) if each["target"] not in targets()]
    wrong += [f"{name}: no subcommand {each['name']}" for each in PARLEY.finditer(text) if each["name"] not in COMMANDS]
    return wrong


def _is_known(package: str) -> bool:
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    return importlib.util.find_spec(package) is not None or f"\n{package.replace('_', '-')}==" in pinned


def test_what_the_documents_tell_people_to_run_exists():
    assert [wrong for path in documents() for text in snippets(path) for wrong in missing_from(path.name, text)] == []


def test_what_the_makefile_runs_exists():
    text = (ROOT / "Makefile").read_text(encoding="utf-8").replace("$(BIN)/", "")
    assert missing_from("Makefile", text) == []


def test_the_reader_of_documents_sees_what_is_missing():
    text = "$ make nothing\npython tools/none.py\npython3 -m retrieval.none\nparley none\nmake -s chat\nparley chat"
    assert len(missing_from("text", text)) == 4


def options_of(command: click.Command) -> set[str]:
    names = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    if isinstance(command, click.Group):
        names |= {name for each in command.commands.values() for name in options_of(each)}
    return names | {"--help"}


def command_at(door: str) -> click.Command:
    module, name = door.split(":")
    return getattr(importlib.import_module(module), name)


def test_every_flag_in_the_documents_exists():
    doors = {door.split(":")[0]: door for door, _ in COMMANDS.values()}
    doors |= {"retrieval": "retrieval.build:cli", "moderation": "moderation.cli:cli"}
    wrong = []
    for path in documents():
        for text in snippets(path):
            runs = [
                (found["module"] or found["file"].removesuffix(".py").replace("/", "."), found["rest"])
                for found in PYTHON.finditer(text)
            ]
            runs += [
                (COMMANDS[found["name"]][0].split(":")[0], found["rest"])
                for found in PARLEY.finditer(text)
                if found["name"] in COMMANDS
            ]
            for module, rest in runs:
                used = set(re.findall(r"(?<=\s)--?[a-z][\w-]*", re.sub(r"\s#.*|\"[^\"]*\"|'[^']*'", " ", rest)))
                if module in doors:
                    wrong += [f"{path.name}: {module} {flag}" for flag in used - options_of(command_at(doors[module]))]
    assert wrong == []


# What is in the repository --------------------------------------------------------------------------------------------


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name]


def test_no_large_file_is_tracked():
    assert [str(path) for path in tracked() if path.is_file() and path.stat().st_size > 1_000_000] == []


def test_every_dependency_is_pinned():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = [
        *project["dependencies"],
        *(r for extra in project["optional-dependencies"].values() for r in extra),
    ]
    names = {re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-") for requirement in requirements}
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert names - set(re.findall(r"^([a-z0-9.-]+)==", constraints, re.MULTILINE)) == set()
    assert "torch" in names
