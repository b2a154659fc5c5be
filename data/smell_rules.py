"""Naive pattern rules for findings in Python code, and what the syntax tree says of each: is it real?"""

import ast
import builtins
import re
from collections import defaultdict
from collections.abc import Callable, Iterator

FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
SCOPE = (*FUNCTION, ast.ClassDef)
SECRET = r"(passw(or)?d|passphrase|pwd|secret|token|credential|user(_?name)?|login|account|auth_?key)s?"
USES = re.compile(
    r"([\w.]+\.)?(open|stat|lstat|listdir|getsize|getmtime|chmod|link|symlink|move|rename|replace|remove|unlink|rmtree"
    r"|mkdir|makedirs|rmdir|copy|copyfile|copytree)"
)
LOOKS = re.compile(r"exc|error|traceback|warn|report|(^|[._])log", re.IGNORECASE)
LOOKED_UP = re.compile(r"os\.(path\.(exists|isfile|isdir)|access)")
OF_SITE = ("copyright", "credits", "exit", "help", "license", "quit")  # no built-ins under python -S
BUILTINS = {name for name in dir(builtins) if name.isalpha() and name.islower() and name not in OF_SITE}


class Module:
    """A parsed source: its nodes, and what stands above each."""

    def __init__(self, source: str):
        self.tree = ast.parse(source)
        self.nodes: list[ast.AST] = [self.tree]
        self.parent, self.by_type = {}, defaultdict(list)
        for node in self.nodes:  # grows while it is read
            self.by_type[type(node)].append(node)
            children = list(ast.iter_child_nodes(node))
            self.parent |= dict.fromkeys(children, node)
            self.nodes += children
        self.own = {node.name for node in self.tree.body if isinstance(node, ast.FunctionDef)}
        for node in self.by_type[ast.ImportFrom]:
            self.own |= {alias.asname or alias.name for alias in node.names}
            self.own |= {"open"} if node.module in ("posix", "nt") else set()  # they are imported by *

    def above(self, node: ast.AST) -> Iterator[ast.AST]:
        """What a node stands in, from the inside out."""
        while node := self.parent.get(node):
            yield node

    def inside(self, node: ast.AST, kinds: tuple) -> ast.AST:
        """The innermost of `kinds` that a node stands in, or the module."""
        return next((above for above in self.above(node) if isinstance(above, kinds)), self.tree)

    def calls(self, *names: str) -> Iterator[ast.Call]:
        """The calls of names as they are written, if the module does not define them: `open` is not `io.open`."""
        wanted = set(names) - self.own
        return (node for node in self.by_type[ast.Call] if written(node.func) in wanted)


def written(node: ast.AST | None) -> str:
    """A name or a chain of attributes as it is written: `os.path.exists`; "" for other expressions."""
    if isinstance(node, ast.Attribute):
        owner = written(node.value)
        return owner and f"{owner}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def own_nodes(nodes: list[ast.AST]) -> Iterator[ast.AST]:
    """The nodes and what is in them, without the inside of nested functions and classes."""
    stack = list(nodes)
    while stack:
        node = stack.pop()
        yield node
        if not isinstance(node, SCOPE):
            stack.extend(ast.iter_child_nodes(node))


def bindings(module: Module) -> Iterator[tuple[str, ast.AST | None, int]]:
    """Each name that is given a value, the value, the line: targets, defaults, keyword arguments."""
    for node in module.nodes:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                key = target.slice if isinstance(target, ast.Subscript) else None
                name = key.value if isinstance(key, ast.Constant) else written(target).split(".")[-1]
                yield str(name), node.value, target.lineno
        elif isinstance(node, ast.keyword):
            yield node.arg or "", node.value, node.lineno
        elif isinstance(node, ast.arguments):
            given = [*node.posonlyargs, *node.args]
            given = given[len(given) - len(node.defaults) :] + node.kwonlyargs
            for parameter, default in zip(given, node.defaults + node.kw_defaults, strict=True):
                yield parameter.arg, default, parameter.lineno


# The rules. A function gives the lines on which its finding is real; its docstring is what the prompts say about it


def use_of_eval(module: Module) -> Iterator[int]:
    """The built-in eval or exec runs something other than a literal as code."""
    for call in module.calls("eval", "exec"):
        if call.args and not isinstance(call.args[0], ast.Constant):
            yield call.lineno


def password_without_value(module: Module) -> Iterator[int]:
    """A password, a token, a key or a user name is set to None or to an empty string."""
    for name, value, line in bindings(module):
        is_empty = isinstance(value, ast.Constant) and value.value in (None, "", b"")
        if is_empty and re.search(rf"(^|_|(?<=[a-z])(?=[A-Z])){SECRET}$", name, re.IGNORECASE):
            yield line


def bare_except(module: Module) -> Iterator[int]:
    """An except clause for all errors goes on without raising, reporting or looking at what was caught."""
    for handler in module.by_type[ast.ExceptHandler]:
        if handler.type is None or written(handler.type) in ("Exception", "BaseException"):
            own = list(own_nodes(handler.body))
            names = [written(node) for node in own]
            looks = any(name and (name == handler.name or LOOKS.search(name)) for name in names)
            if not looks and not any(isinstance(node, ast.Raise) for node in own):
                yield handler.lineno


def assert_as_check(module: Module) -> Iterator[int]:
    """An assert checks an argument of the function it stands in; python -O drops the check."""
    for check in module.by_type[ast.Assert]:
        function = module.inside(check, FUNCTION)
        if function is not module.tree:
            names = {node.arg for node in ast.walk(function.args) if isinstance(node, ast.arg)} - {
                "self",
                "cls",
            }
            if any(isinstance(node, ast.Name) and node.id in names for node in ast.walk(check.test)):
                yield check.lineno


def temporary_file_by_name(module: Module) -> Iterator[int]:
    """Code names a temporary file itself, by mktemp or a path under /tmp, so others can make that file first."""
    for call in module.by_type[ast.Call]:
        if written(call.func).split(".")[-1] in ("mktemp", "tempnam", "tmpnam"):
            yield call.lineno
    for text in module.by_type[ast.Constant]:
        if not isinstance(module.parent[text], ast.Expr) and re.match(
            r"/((var|usr)/)?tmp\b", str(text.value)
        ):
            yield text.lineno


def unclosed_file(module: Module) -> Iterator[int]:
    """A file of the built-in open is in no with statement, not returned, and closed nowhere by its name."""
    called = {written(call.func) for call in module.by_type[ast.Call]}
    closed = {name.removesuffix(".close") for name in called if name.endswith(".close")}
    closed |= {written(item.context_expr) for item in module.by_type[ast.withitem]}
    for call in module.calls("open"):
        above = module.parent[call]
        passed = isinstance(above, ast.Call) and written(above.func).split(".")[-1] in (
            "closing",
            "enter_context",
        )
        names = {written(target) for target in above.targets} if isinstance(above, ast.Assign) else set()
        if not (isinstance(above, ast.withitem | ast.Return) or passed or (names - {""}) & closed):
            yield call.lineno


def print_in_function(module: Module) -> Iterator[int]:
    """A function other than main prints to standard output, where a library should return or log."""
    for call in module.calls("print"):
        function = module.inside(call, FUNCTION)
        name = "main" if function is module.tree else getattr(function, "name", "lambda").strip("_")
        if name not in ("main", "usage") and all(keyword.arg != "file" for keyword in call.keywords):
            yield call.lineno


def mutable_class_attribute(module: Module) -> Iterator[int]:
    """A list, a dict or a set is assigned in the body of a class, so all its instances share it."""
    for node in [*module.by_type[ast.Assign], *module.by_type[ast.AnnAssign]]:
        target = written(node.targets[0] if isinstance(node, ast.Assign) else node.target)
        if isinstance(module.inside(node, SCOPE), ast.ClassDef) and not target.startswith("__"):
            yield node.lineno


def mutable_default(module: Module) -> Iterator[int]:
    """The default of a parameter is a list, a dict or a set, which all calls share."""
    for arguments in module.by_type[ast.arguments]:
        for default in [*arguments.defaults, *arguments.kw_defaults]:
            if isinstance(default, ast.List | ast.Dict | ast.Set):
                yield default.lineno


def check_then_use(module: Module) -> Iterator[int]:
    """A path is looked up first, and opened, changed or read later in the same function; it can change in between."""
    for call in module.by_type[ast.Call]:
        if LOOKED_UP.fullmatch(written(call.func)) and call.args:
            path, scope = ast.unparse(call.args[0]), module.inside(call, FUNCTION)
            later = own_nodes(scope.body if isinstance(scope.body, list) else [scope.body])
            later = (node for node in later if isinstance(node, ast.Call) and node.lineno >= call.lineno)
            uses = (node for node in later if USES.fullmatch(written(node.func)))
            if any(path in map(ast.unparse, node.args) for node in uses):
                yield call.lineno


def regex_compiled_in_function(module: Module) -> Iterator[int]:
    """A function compiles a regular expression anew at each call."""
    for call in module.calls("re.compile"):
        if module.inside(call, FUNCTION) is not module.tree:
            yield call.lineno


def import_in_function(module: Module) -> Iterator[int]:
    """An import stands in a function, so that a missing module shows only when the function is called."""
    for node in [*module.by_type[ast.Import], *module.by_type[ast.ImportFrom]]:
        if module.inside(node, FUNCTION) is not module.tree:
            yield node.lineno


def shadowed_builtin(module: Module) -> Iterator[int]:
    """A parameter, or a variable outside of a class body, takes the name of a built-in."""
    for node in module.by_type[ast.arg]:
        if node.arg in BUILTINS:
            yield node.lineno
    for node in module.by_type[ast.Name]:
        is_set = node.id in BUILTINS and isinstance(node.ctx, ast.Store)
        if is_set and not isinstance(module.inside(node, SCOPE), ast.ClassDef):
            yield node.lineno


RULES: dict[Callable[[Module], Iterator[int]], str] = {
    use_of_eval: r"\b(eval|exec)\s*\(",
    password_without_value: rf"(?i){SECRET}['\"\])]*\s*=(?!=)",
    bare_except: r"\bexcept\s*:|\bexcept\b.*\b(Base)?Exception\b",
    assert_as_check: r"\bassert\b",
    temporary_file_by_name: r"/tmp\b|mktemp|te?mpnam",
    unclosed_file: r"^(?!\s*(with|def)\b).*(?<![\w.])open\(",
    print_in_function: r"\bprint\(",
    mutable_class_attribute: r"^    \w+\s*=\s*(\[|\{|dict\(|list\(|set\()",
    mutable_default: r"\bdef\b.*=\s*[\[{(]|^\s+\w+=(\[\]|\{\}|\(\)),?",
    check_then_use: r"\bos\.(path\.(exists|isfile|isdir)|access)\(",
    regex_compiled_in_function: r"\bre\.compile\(",
    import_in_function: r"^    (import\s+\w+|from\s+[\w.]+\s+import)\b",
    shadowed_builtin: rf"(?<![\w.])({'|'.join(sorted(BUILTINS))})\s*=(?!=)",
}
SMELLS = {rule.__name__: rule for rule in RULES}
