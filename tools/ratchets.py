"""The ratchets of the house: what neither ruff, mypy nor import-linter can hold. Run by `make lint`.

Each rule is a function from one parsed module to findings (rules over the whole package come last). Exceptions stand
in `tools/allowed.toml`, each with its reason; an exception that nothing uses any more is itself a finding.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

FILE_LINES = 600
FUNCTION_LINES = 60
ARGUMENTS = 7
BASE_LINES = 600
FOLDERS = ("src", "tests", "tools", "benchmarks", "examples")

BANNED_WORDS = frozenset({"manager", "handler", "util", "helper", "common"})
# Reading any of these formats can run code that the bytes bring along (attacks.md, class 7).
BANNED_MODULES = frozenset({"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"})
BANNED_CALLS = frozenset(
    {"yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "torch.load", "eval", "exec", "numpy.load"}
)

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Finding:
    """One breach: ``name`` is what an exception in allowed.toml would name."""

    rule: str
    path: str
    line: int
    name: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}: {self.message}"


@dataclass(frozen=True, slots=True)
class Module:
    """One source file, parsed. ``path`` is relative to the repository, with slashes."""

    path: str
    source: str
    tree: ast.Module

    @classmethod
    def parse(cls, path: str, source: str) -> Module:
        return cls(path, source, ast.parse(source, path))

    @property
    def is_product(self) -> bool:
        return self.path.startswith("src/")

    def finding(self, rule: str, line: int, name: str, message: str) -> Finding:
        return Finding(rule, self.path, line, name, message)


def functions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, FunctionNode]]:
    """Every function below ``node`` with its qualified name."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, FunctionNode):
            yield prefix + child.name, child
            yield from functions(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.ClassDef):
            yield from functions(child, f"{prefix}{child.name}.")
        else:
            yield from functions(child, prefix)


def owners(tree: ast.Module) -> dict[ast.AST, str]:
    """For every node inside a function, the innermost function's qualified name."""
    owner: dict[ast.AST, str] = {}
    for name, function in functions(tree):  # outer functions come first, so inner ones overwrite
        for node in ast.walk(function):
            owner[node] = name
    return owner


def dotted(node: ast.AST) -> str:
    """``a.b.c`` of a chain of attributes; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        left = dotted(node.value)
        return f"{left}.{node.attr}" if left else ""
    return ""


def imported(node: ast.AST) -> list[str]:
    """What an import statement names: modules, and for `from m import n` also ``m.n``."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


# ------------------------------------------------------------------------------------------------- rules over a module


def file_length(module: Module) -> Iterator[Finding]:
    lines = module.source.count("\n")
    if lines > FILE_LINES:
        yield module.finding("file-length", 1, "", f"{lines} lines (at most {FILE_LINES}): split it by question")


def function_length(module: Module) -> Iterator[Finding]:
    for name, function in functions(module.tree):
        lines = (function.end_lineno or function.lineno) - function.lineno + 1
        if lines > FUNCTION_LINES:
            yield module.finding(
                "function-length", function.lineno, name, f"{name} has {lines} lines (at most {FUNCTION_LINES})"
            )


def arguments(module: Module) -> Iterator[Finding]:
    for name, function in functions(module.tree):
        given = [*function.args.posonlyargs, *function.args.args]
        if given and given[0].arg in {"self", "cls"}:
            given = given[1:]
        count = len(given) + len(function.args.kwonlyargs)
        if count > ARGUMENTS:
            yield module.finding(
                "arguments", function.lineno, name, f"{name} takes {count} arguments (at most {ARGUMENTS})"
            )


def no_global(module: Module) -> Iterator[Finding]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Global):
            yield module.finding("global", node.lineno, ",".join(node.names), f"`global {', '.join(node.names)}`")


def lazy_imports(module: Module) -> Iterator[Finding]:
    if not module.is_product:
        return
    for node, function in owners(module.tree).items():
        names: list[str] = []
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = imported(node)[:1] or ["."]
        elif isinstance(node, ast.Call) and dotted(node.func) in {
            "importlib.import_module",
            "import_module",
            "__import__",
        }:
            names = ["importlib"]
        for name in names:
            line = getattr(node, "lineno", 1)
            yield module.finding(
                "lazy", line, name, f"{function} imports {name} lazily: name the reason in allowed.toml"
            )


def environment(module: Module) -> Iterator[Finding]:
    if not module.is_product or module.path == "src/penstock/app.py" or "/worker/" in module.path:
        return
    for node in ast.walk(module.tree):
        names = [dotted(node)] if isinstance(node, ast.Attribute) else imported(node)
        for name in names:
            if name in {"os.environ", "os.environb", "os.getenv", "os.getenvb", "os.putenv"}:
                line = getattr(node, "lineno", 1)
                yield module.finding("environment", line, name, f"{name}: settings are parsed in app.py and passed on")


def empty_init(module: Module) -> Iterator[Finding]:
    if not module.is_product or not module.path.endswith("/__init__.py") or module.path == "src/penstock/__init__.py":
        return
    if module.source.strip():
        yield module.finding("empty-init", 1, "", "a package's __init__ stays empty")


def words(module: Module) -> Iterator[Finding]:
    stem = module.path.rsplit("/", 1)[-1].removesuffix(".py")
    named = [(1, stem)] + [(n.lineno, n.name) for n in ast.walk(module.tree) if isinstance(n, ast.ClassDef)]
    for line, name in named:
        for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name):
            plain = word.lower()
            if {plain, plain.removesuffix("s")} & BANNED_WORDS:
                yield module.finding("words", line, name, f"{name}: {word!r} says nothing; use the field's term")


def broad_except(module: Module) -> Iterator[Finding]:
    if not module.is_product:
        return
    owner = owners(module.tree)
    broad = {"Exception", "BaseException"}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ExceptHandler):
            kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            caught = any(kind is None or dotted(kind) in broad for kind in kinds)
            passes_on = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
            caught = caught and not passes_on  # cleaning up and passing on hides nothing
        elif isinstance(node, ast.Call) and dotted(node.func) in {"suppress", "contextlib.suppress"}:
            caught = any(dotted(argument) in broad for argument in node.args)
        else:
            continue
        if caught:
            where = owner.get(node, "<module>")
            yield module.finding("broad-except", node.lineno, where, f"broad except in {where}")


def code_from_bytes(module: Module) -> Iterator[Finding]:
    if not module.is_product or "/worker/" in module.path:
        return
    for node in ast.walk(module.tree):
        for name in imported(node):
            if name.split(".")[0] in BANNED_MODULES or name in BANNED_CALLS:
                yield module.finding("code-from-bytes", getattr(node, "lineno", 1), name, f"imports {name}")
        if isinstance(node, ast.Call) and dotted(node.func) in BANNED_CALLS:
            yield module.finding("code-from-bytes", node.lineno, dotted(node.func), f"calls {dotted(node.func)}")


def base_is_stdlib(module: Module) -> Iterator[Finding]:
    if not module.path.startswith("src/penstock/base/"):
        return
    for node in ast.walk(module.tree):
        for name in imported(node)[:1] if isinstance(node, ast.ImportFrom) else imported(node):
            if name.split(".")[0] not in sys.stdlib_module_names and not name.startswith("penstock.base"):
                yield module.finding("base-stdlib", getattr(node, "lineno", 1), name, f"base imports {name}")


def unfinished(module: Module) -> Iterator[Finding]:
    """Comments that promise, and suppressions without a reason."""
    for token in tokenize.generate_tokens(io.StringIO(module.source).readline):
        if token.type != tokenize.COMMENT:
            continue
        line = token.start[0]
        if re.search(r"\b(TODO|FIXME|XXX|HACK)\b", token.string):
            yield module.finding("unfinished", line, "", f"unfinished: {token.string.strip('# ')[:80]}")
        bare = re.search(
            r"#\s*(noqa|type:\s*ignore|nosec|pragma: no cover)(:?\s*[A-Z]+\d+,?|\[[^]]*\]|,?\s)*$", token.string
        )
        if module.is_product and bare:
            yield module.finding("unfinished", line, "", f"say why: `{token.string}  # because ...`")


def honest_tests(module: Module) -> Iterator[Finding]:
    if not module.path.startswith("tests/"):
        return
    for node in ast.walk(module.tree):
        for name in imported(node):
            if name.startswith(("unittest.mock", "mock", "pytest_mock")):
                yield module.finding("honest-tests", getattr(node, "lineno", 1), name, "mock libraries are not used")
        if isinstance(node, ast.Attribute) and re.fullmatch(
            r"pytest\.(skip|xfail|importorskip|mark\.(skip|skipif|xfail))", dotted(node)
        ):
            yield module.finding("honest-tests", node.lineno, dotted(node), f"{dotted(node)}: a test runs, or it goes")


MODULE_RULES: tuple[Callable[[Module], Iterator[Finding]], ...] = (
    file_length,
    function_length,
    arguments,
    no_global,
    lazy_imports,
    environment,
    empty_init,
    words,
    broad_except,
    code_from_bytes,
    base_is_stdlib,
    unfinished,
    honest_tests,
)

# ------------------------------------------------------------------------------------------- rules over the whole tree


def base_size(modules: Iterable[Module]) -> Iterator[Finding]:
    lines = sum(m.source.count("\n") for m in modules if m.path.startswith("src/penstock/base/"))
    if lines > BASE_LINES:
        yield Finding("base-size", "src/penstock/base", 1, "", f"base/ has {lines} lines in all (at most {BASE_LINES})")


def cycles(imports: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Groups of modules that import each other in a circle (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in imports.get(node, ()):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for name in imports:
        if name not in index:
            visit(name)
    return found


def import_cycles(root: Path) -> Iterator[Finding]:
    """Cycles among Penstock's modules, imports inside functions included; those for types alone never run."""
    import grimp

    # grimp asks Python where the package is, and an imported one (in the tests) would answer instead of this tree's.
    imported = sys.modules.pop("penstock", None)
    sys.path.insert(0, str(root / "src"))
    try:
        graph = grimp.build_graph("penstock", cache_dir=None, exclude_type_checking_imports=True)
    finally:
        sys.path.remove(str(root / "src"))
        if imported is not None:
            sys.modules["penstock"] = imported
    for group in cycles(
        {name: sorted(graph.find_modules_directly_imported_by(name)) for name in sorted(graph.modules)}
    ):
        yield Finding("cycle", "src/" + group[0].replace(".", "/") + ".py", 1, group[0], " <-> ".join(group))


# --------------------------------------------------------------------------------------------------------- exceptions


@dataclass(frozen=True, slots=True)
class Allowed:
    rule: str
    path: str
    name: str
    reason: str

    def covers(self, finding: Finding) -> bool:
        return (
            (self.rule, self.path) == (finding.rule, finding.path)
            and (self.name in {"*", finding.name})
            and bool(self.reason.strip())
        )


def read_allowed(text: str) -> list[Allowed]:
    return [
        Allowed(rule, row["path"], row["name"], row["reason"])
        for rule, rows in tomllib.loads(text).items()
        for row in rows
    ]


def judge(findings: Iterable[Finding], allowed: list[Allowed]) -> list[Finding]:
    """The findings that no exception covers, and the exceptions that cover nothing."""
    left, used = [], set()
    for finding in findings:
        excuse = next((entry for entry in allowed if entry.covers(finding)), None)
        if excuse is None:
            left.append(finding)
        else:
            used.add(excuse)
    for entry in allowed:
        if entry not in used:
            message = f"this exception to {entry.rule} in {entry.path} covers nothing: take it out"
            left.append(Finding("stale", "tools/allowed.toml", 1, entry.name, message))
    return left


def check(root: Path) -> list[Finding]:
    """Every finding in the repository at ``root``, exceptions applied."""
    paths = [path for folder in FOLDERS for path in sorted((root / folder).rglob("*.py"))]
    modules = [Module.parse(path.relative_to(root).as_posix(), path.read_text()) for path in paths]
    findings = [finding for module in modules for rule in MODULE_RULES for finding in rule(module)]
    findings += [*base_size(modules), *import_cycles(root)]
    return judge(findings, read_allowed((root / "tools/allowed.toml").read_text()))


def main() -> int:
    findings = check(Path(__file__).resolve().parent.parent)
    for finding in findings:
        print(finding)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
