"""Names in findings of infrastructure as code: one spelling for each known smell, and the technology of a file."""

import re
from typing import NamedTuple

PASSED_OVER = {"use", "usage", "usag", "using", "of", "a", "an", "the", "in", "for", "to", "sec", "smell"}


class Smell(NamedTuple):
    spellings: str  # a pattern that `reduced` names match as a whole
    meaning: str


# Spellings: those of GLITCH (github.com/sr-lab/GLITCH, glitch/analysis/rules.py), of SLIC, and of scripts that read
# their reports, found by a search of public code on 2026-11-20
SMELLS = {
    "hard_coded_secret": Smell(
        r"(hard|hard_?coded?|plain_?text|embedded)_(\w+_)?(secr|pass|pwd|user|uname|cred|token|key|login)\w*"
        r"|(secrets?|passwords?|user_?names?|credentials?|tokens?|keys?)_hard_?coded?",
        "A user name, password, key or token is written into the code as a literal value, so that whoever reads "
        "the code knows it.",
    ),
    "suspicious_comment": Smell(
        r"susp\w*_comm\w*",
        "A comment tells of a defect, a missing feature or a weakness that an attacker could use.",
    ),
    "use_of_http": Smell(
        r"((insecure|plain|unencrypted|clear_?text)_)?https?"
        r"(_(with_?out|no|not|instead|only|protocol|connection|url|ssl|tls)(_\w+)?)?"
        r"|(without|no|missing)_(ssl|tls|https)(_\w+)?",
        "Something is fetched or served over plain HTTP, without TLS, so that it can be read or changed on its way.",
    ),
    "weak_cryptography_algorithms": Smell(
        r"(weak|insecure|broken)_(crypt|cipher|hash|encrypt|algo)\w*|(md_?5|sha_?1)(_(or_)?(md_?5|sha_?1))?",
        "A broken or weak algorithm such as MD5, SHA-1, DES or RC4 protects something that matters.",
    ),
    "admin_by_default": Smell(
        r"(admin|root)\w*_(by_)?default\w*|(def|default|dflt)_(admin|admn|root)\w*",
        "A user or a service gets administrator rights by default, which is more than it needs.",
    ),
    "empty_password": Smell(
        r"(empty|empt|blank|null)_(pass|pwd)\w*|(pass|pwd)\w*_(is_)?(empty|blank|null)",
        "A password is set to an empty string, so that anybody can log in.",
    ),
    "invalid_ip_binding": Smell(
        r"(invalid|improper|unrestricted|unsafe|insecure|open)_(ip|bind)\w*|bind|bind(ing)?_(all|any|unrestricted|0)\w*",
        "A service binds to 0.0.0.0 or another unrestricted address, so that every network reaches it.",
    ),
    "no_integrity_check": Smell(
        r"(no|missing|without|lack)_(int|integ\w*)(_(check|verif|valid)\w*)?|source_integrity|(no|missing)_checksums?",
        "A file is downloaded and used without a checksum or a signature that shows it is unchanged.",
    ),
    "missing_default_case": Smell(
        r"(no|missing|miss)_(default|dflt)(_(case|switch|branch|selector|statement)\w*)?"
        r"|case_(statement_)?without_default|missing_case_default",
        "A case or a selector has no default branch, so that an unexpected value is not handled.",
    ),
}
TECHNOLOGIES = [  # by ending, then by what the whole name holds
    (r"\.pp$", "Puppet"),
    (r"\.e?rb$", "Chef"),
    (r"\.tf(vars)?$", "Terraform"),
    (r"\.py$", "Python"),
    (r"dockerfile", "Docker"),
    (r"\.ya?ml$|\.j2$|ansible|playbook", "Ansible"),
    (r"puppet|manifests", "Puppet"),
    (r"chef|cookbook|recipes", "Chef"),
]


def separated(name: str) -> str:
    """A name in lower case with underscores, of camelCase, dashes, slashes and spaces."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return re.sub(r"[\W_]+", "_", name.lower()).strip("_")


def reduced(name: str) -> str:
    """A smell's name as in `separated`, without a code (CWE-798), a description behind it, and words of no weight."""
    name = re.sub(r"^\W*(?:(?:security|cwe.?\d+)\W+)+", "", name.strip(), flags=re.I)
    name = re.split(r":::|\s[-\u2013|:]\s|:\s|[(\[]", name)[0]
    return "_".join(word for word in separated(name).split("_") if word not in PASSED_OVER)


def normalise_smell(name: str) -> str:
    """The smell's one spelling; one that SMELLS does not know keeps its own, as in `separated`."""
    key = reduced(name)
    known = (smell for smell, (spellings, _) in SMELLS.items() if re.fullmatch(spellings, key))
    return next(known, separated(name))


def find_technology(file: str) -> str:
    """What the file is written for, by its ending or else by its name; "infrastructure" where neither tells."""
    name = file.strip().lower()
    return next((tech for pattern, tech in TECHNOLOGIES if re.search(pattern, name)), "infrastructure")
