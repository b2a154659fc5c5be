"""Keys stay out of sight: what in an address and in the environment is secret, and texts with it blotted out."""

import base64
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, unquote, urlsplit, urlunsplit

from core.errors import UserError

KEY = "OPENAI_API_KEY"
OPENAI = "https://api.openai.com/v1"
BLOT = "***"
SECRET_NAME = re.compile(r"key|token|secret|passw|sig|auth|credential|code", re.IGNORECASE)
LEAST_LETTERS = 6  # of a secret that is blotted out of answers: shorter ones (EMPTY, none) are words, too


@dataclass(frozen=True)
class Address:
    """A server, its secrets apart from what may be shown."""

    url: str  # without user, password and query: may be shown
    key: str  # "" for none
    headers: dict[str, str]
    query: dict[str, str]
    secrets: tuple[str, ...]

    def hide(self, text: str, least: int = 1) -> str:
        """A text with the secrets of at least so many letters blotted out."""
        for secret in self.secrets:
            if len(secret) >= least:
                text = text.replace(secret, BLOT)
        return text


def read_address(base_url: str) -> Address:
    """The server of --base_url (else of OPENAI_BASE_URL, else OpenAI's), and the key of OPENAI_API_KEY.

    user:password@ in it is sent as basic authentication, its query with every request.
    Raises: UserError, without a secret in it.
    """
    key = os.environ.get(KEY, "").strip()
    if re.search(r"\s", key) or not key.isascii():
        raise UserError(f"{KEY}: holds white space or letters that are not ASCII; expected a key")
    flag = "--base_url" if base_url else "OPENAI_BASE_URL"
    given = base_url or os.environ.get("OPENAI_BASE_URL", "").strip() or OPENAI
    try:
        parts = urlsplit(given)
        is_good = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:
        is_good = False
    if not is_good:
        raise UserError(f"{flag}: is no address of a server; expected http://HOST:PORT/v1 or https://HOST/v1")
    if given == OPENAI and not key:
        raise UserError(f"set the environment variable {KEY}, or give --base_url of a server without a key")
    host = parts.netloc.rpartition("@")[2]
    url = urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    headers, found = {}, [key]
    if parts.username or parts.password:
        pair = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
        basic = base64.b64encode(pair.encode()).decode()
        headers["Authorization"] = f"Basic {basic}"
        found += [basic, pair, parts.password or parts.username or ""]
    found += [value for name, value in query.items() if SECRET_NAME.search(name)]
    return Address(url, key, headers, query, all_forms(found))


def all_forms(secrets: Iterable[str]) -> tuple[str, ...]:
    """Secrets as they are and as addresses spell them, the longest first."""
    forms = {form for own in secrets for form in (own, unquote(own), quote(own), quote(own, safe=""))}
    return tuple(sorted(forms - {""}, key=lambda form: (-len(form), form)))


def hide_arguments(message: str) -> str:
    """A complaint about the command line without what may be a key in it."""
    key = os.environ.get(KEY, "").strip()
    message = message.replace(key, BLOT) if key else message
    message = re.sub(r"//[^/@\s]*@", f"//{BLOT}@", message)
    message = re.sub(r"([?&][^=&\s]+=)[^&\s'\"]+", rf"\1{BLOT}", message)
    message = re.sub(
        r"(--?\w*(?:key|token|secret|password)\w*[ =])\s*\S+", rf"\1{BLOT}", message, flags=re.IGNORECASE
    )
    return re.sub(r"\b(?:sk|hf|gsk|xai)[-_][\w-]{6,}", BLOT, message)
