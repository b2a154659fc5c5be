"""What looks like a key must reach no log and no run.json: it is refused where it is given, and never repeated."""

import re

BLOT = "***"
# OpenAI's and its like, Hugging Face's, GitHub's, AWS's and Slack's own forms
FORMS = (
    r"\b(?:sk|gsk|xai)-[\w-]{16,}",
    r"\bhf_[A-Za-z0-9]{20,}",
    r"\b(?:ghp|gho|ghs|github_pat)_\w{20,}",
    r"\bAKIA[0-9A-Z]{16}\b",
    r"\bxox[abprs]-[\w-]{10,}",
)
KEY = re.compile("|".join(FORMS))
IN_ADDRESS = re.compile(r"(?<=//)[^/@\s]*:[^/@\s]+(?=@)")  # user:password@ of an address


def is_key(text: str) -> bool:
    """Whether a word has letters and digits as a key has them: sk-learn-baseline is none."""
    return any(c.isdigit() for c in text) and any(c.isupper() for c in text)


def hide_keys(text: str) -> str:
    """A text with everything in it blotted out that looks like a key, or like a password in an address."""
    text = KEY.sub(lambda found: BLOT if is_key(found.group()) else found.group(), text)
    return IN_ADDRESS.sub(BLOT, text)
