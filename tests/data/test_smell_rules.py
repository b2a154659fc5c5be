"""data/smell_rules.py: each rule on examples, and mutants of it."""

import pytest

from data import smells
from data.iac_names import normalise_smell
from data.smell_rules import RULES, SMELLS
from data.smells import find_detections

EXAMPLES = {
    "use_of_eval": [
        "eval(text)  # TP",
        "exec (f.read(), {})  # TP",
        "x = [eval(a), 'eval(b)']  # TP",
        "eval('1 + 1')  # FP",
        "self.tk.eval(text)  # FP",
        "# eval(text)  # FP",
        "'''\neval(text)  # FP\n'''",
        "def exec(code):  # FP\n    pass\nexec(code)  # FP",
        "from mine import eval\neval(text)  # FP",
        "class A:\n    def eval(self, text):  # FP\n        return eval(text)  # TP",
        "evaluate(text)\neval",
    ],
    "password_without_value": [
        "password = None  # TP",
        "self.user_name = ''  # TP",
        "data['passwd'] = b''  # TP",
        "user = password = None  # TP",
        "def f(host, token=None, n=1):  # TP\n    pass",
        "def f(*, userPassword=None):  # TP\n    pass",
        "x: str = ''\nlogin: str = ''",  # the rule is naive: it sees no annotation
        "connect(authkey=None)  # TP",
        "password = getpass()  # FP",
        "token = 0  # FP",
        "password = 'sesame'  # FP",
        "# password = None  # FP",
        "x = 'password = None'  # FP",
        "'''\ntoken = ''  # FP\n'''",
        "connect(user=user)  # FP",
        "if password == None:\n    pass",
        "token_type = ''",
    ],
    "bare_except": [
        "try:\n    f()\nexcept:  # TP\n    pass",
        "try:\n    f()\nexcept Exception:  # TP\n    x = 1",
        "try:\n    f()\nexcept BaseException as e:  # TP\n    def g():\n        raise ValueError\n",
        "try:\n    f()\nexcept:  # FP\n    g()\n    raise",
        "try:\n    f()\nexcept Exception as e:  # FP\n    g(e)",
        "try:\n    f()\nexcept Exception:  # FP\n    logging.info('x')",
        "try:\n    f()\nexcept:  # FP\n    self.handle_error()",
        "try:\n    f()\nexcept MyException:\n    pass",
        "try:\n    f()\nexcept (OSError, Exception):  # FP\n    pass",  # of a tuple the rule knows nothing
        "# except:  # FP\n'''\nexcept Exception:  # FP\n'''",
    ],
    "assert_as_check": [
        "def f(a, *b, self=1):\n    assert a > 0  # TP\n    assert len(b)  # TP\n    assert self  # FP",
        "def f(a):\n    x = a + 1\n    assert x > 0  # FP",
        "def f(a):\n    class B:\n        def g(self):\n            assert a  # FP",
        "async def f(*, k):\n    assert isinstance(  # TP\n        k, int)",
        "assert a  # FP",
        "def f(a):\n    'we assert a'  # FP\n    # assert a  # FP",
        "def f(a):\n    assert (  # TP\n        a)",
        "self.assertTrue(a)",
    ],
    "temporary_file_by_name": [
        "f = open('/tmp/x', 'w')  # TP",
        "name = tempfile.mktemp()  # TP",
        "x = {'/var/tmp': 1}  # TP",
        "from tempfile import mktemp  # FP",
        "def mktemp():  # FP\n    pass",
        "'''\nin /tmp there is  # FP\n'''",
        "x = 'see /tmp/a'  # FP",
        "# /tmp  # FP",
        "tempfile.mkstemp()\nx = '/tmpfile'",
    ],
    "unclosed_file": [
        "x = open(p).read()  # TP",
        "f = open(p)  # TP\nf.read()\ng.close()",
        "f(open(p))  # TP",
        "self.f = open(p)  # TP",
        "f = open(p)  # FP\nf.close()",
        "class A:\n    def f(self):\n        self.f = open(p)  # FP\n    def g(self):\n        self.f.close()",
        "def f():\n    return open(p)  # FP",
        "f = open(p)  # FP\nwith f:\n    pass",
        "x = stack.enter_context(open(p))  # FP",
        "from codecs import open\nx = open(p)  # FP",
        "from posix import *\nx = open(p)  # FP",
        "# open(p)  # FP\n'''\nx = open(p)  # FP\n'''",
        "with open(p) as f:\n    pass\nx = io.open(p)\ndef open(p):\n    pass",
    ],
    "print_in_function": [
        "def f():\n    print(1)  # TP\n    [print(x) for x in y]  # TP",
        "class A:\n    def f(self):\n        print()  # TP",
        "x = lambda: print(1)  # TP",
        "def main():\n    print(1)  # FP\ndef _usage():\n    print(1)  # FP",
        "print(1)  # FP",
        "def f():\n    print(1, file=x)  # FP",
        "def f():\n    print(1,  # FP\n          file=x)",
        "def f():\n    '''\n    >>> print(1)  # FP\n    '''\n    self.print(2)  # FP",
        "pprint(1)",
    ],
    "mutable_class_attribute": [
        "class A:\n    x = []  # TP\n    y = {  # TP\n    }\n    z = dict(a=1)  # TP\n    __slots__ = []  # FP",
        "class A:\n    if B:\n        x = []\n    x = (1,)",
        "def f():\n    x = []  # FP",
        "if a:\n    x = {}  # FP",
        "'''\n    x = []  # FP\n'''",
        "class A:\n    def f(self):\n        self.x = []",
    ],
    "mutable_default": [
        "def f(a, b=[]):  # TP\n    pass",
        "def f(a={}, *, b=1):  # TP\n    pass",
        "def f(a,\n      b=[]):  # TP\n    pass\ndef g(\n        b=[],  # TP\n):\n    pass",
        "def f(a, b=()):  # FP\n    pass",
        "def f(a=(1, [])):  # FP\n    pass",
        "f(\n    a=[],  # FP\n)",
        "# def f(a=[])  # FP",
        "def f(a=None):\n    pass",
    ],
    "check_then_use": [
        "def f(p):\n    if os.path.exists(p):  # TP\n        return open(p)",
        "if not os.path.isdir(a.b):  # TP\n    os.mkdir(a.b)",
        "def f(p):\n    if os.access(p, 1):  # TP\n        shutil.copy(p, q)",
        "x = os.path.isfile(p) and open(p)  # TP",
        "def f(p):\n    if os.path.exists(p):  # FP\n        return open(q)",
        "def f(p):\n    g = open(p)\n    return os.path.exists(p)  # FP",
        "def f(p):\n    if os.path.exists(p):  # FP\n        def g():\n            open(p)",
        "def f(p):\n    os.path.exists(p)  # FP\ndef g(p):\n    open(p)",
        "# os.path.exists(p)  # FP\nopen(p)",
        "os.path.join(p)",
    ],
    "regex_compiled_in_function": [
        "def f():\n    return re.compile('a')  # TP",
        "class A:\n    def f(self):\n        x = re.compile(a)  # TP",
        "x = re.compile('a')  # FP",
        "class A:\n    x = re.compile('a')  # FP",
        "def f():\n    '''re.compile('a')'''  # FP",
        "def f():\n    more.re.compile('a')  # FP",
        "def f():\n    compile('a')",
    ],
    "import_in_function": [
        "def f():\n    import os  # TP\n    from a.b import c  # TP",
        "try:\n    import os  # FP\nexcept ImportError:\n    pass",
        "class A:\n    from a import b  # FP",
        "'''\n    import os  # FP\n'''",
        "import os\ndef f():\n    important = 1",
    ],
    "shadowed_builtin": [
        "list = []  # TP",
        "def f(type=None):  # TP\n    pass",
        "def f(a,\n      id=1):  # TP\n    pass",
        "for x in y:\n    max = x  # TP",
        "with a as dir: len = 1  # TP",
        "f(type=int)  # FP",
        "class A:\n    id = 1  # FP\n    def f(self, a):\n        id = 2  # TP",
        "x = 'type=1'  # FP",
        "# type = 1  # FP",
        "self.type = 1\nif type == int:\n    pass\nmytype = 1",
    ],
}


def wrong_labels(smell: str) -> list[str]:
    """The lines of a rule's EXAMPLES that it labels otherwise, or finds where it is not to, or does not find."""
    wrong = []
    for source in EXAMPLES[smell]:
        found = {
            row["line"]: row["label"] for row in find_detections(source, "a.py") if row["smell"] == smell
        }
        for n, line in enumerate(source.split("\n"), 1):
            label = line[-2:] if line.endswith(("# TP", "# FP")) else None
            if found.get(n) != label:
                wrong.append(f"{line!r} of {source!r}: {found.get(n)}")
    return wrong


# By hand


@pytest.mark.parametrize("smell", SMELLS)
def test_rule_by_hand(smell):
    assert wrong_labels(smell) == []
    labels = "".join(EXAMPLES[smell])
    assert labels.count("# TP") >= 2 <= labels.count("# FP")


@pytest.mark.parametrize("smell", SMELLS)
@pytest.mark.parametrize("mutation", ["flipped", "always", "never", "a line late"])
def test_bite_rules(monkeypatch, smell, mutation):
    rule = SMELLS[smell]

    def mutant(module):
        lines = set(rule(module))
        everywhere = set(range(1, 20))
        return {
            "flipped": everywhere - lines,
            "always": everywhere,
            "never": set(),
            "a line late": {n + 1 for n in lines},
        }[mutation]

    mutant.__name__ = smell
    monkeypatch.setattr(smells, "RULES", {mutant: RULES[rule]})
    assert wrong_labels(smell)


def test_rules_have_names_and_meanings_of_their_own():
    assert set(EXAMPLES) == set(SMELLS)
    assert [normalise_smell(smell) for smell in SMELLS] == list(SMELLS)
    for rule in RULES:
        assert rule.__doc__ == " ".join(rule.__doc__.split())
        assert rule.__doc__.endswith(".")
