"""Hides passwords, keys and tokens of URLs in all text that is shown or recorded."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import SplitResult, unquote_plus, urlsplit

HIDDEN = "***"
MAX_URL_LEVELS = 4
"""Depth to which URLs in the parameters of URLs are searched for secrets."""
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,31})://")
"""A scheme has bounded length here, since a search tries it at every letter of a text."""
_AUTHORITY = re.compile(r"\[[^\]\s]*\](:\d+)?|[^/?#@\s]*")
_WORD = re.compile(r"\S*")
_LINE_END = re.compile(r"[\r\n]")
_URL_END = re.compile(rf"(?<=[\s'\"(<\[]){_SCHEME.pattern}|[\r\n]")
"""The beginning of the next URL of a text, or the end of the line."""
_SECRET_NAME = re.compile(
    ".*(passw|pwd|passphrase|secret|token|credential|signature|apikey|accesskey|accountkey"
    "|privatekey|sharedkey|authkey).*|pass|sig|sas|key|jwt|auth|authorization"
)
_CLOSING = "'\"`)>]},.;:"
_WITH_CONTAINER = ("abfs", "abfss", "wasb", "wasbs")
"""Schemes of URIs that have CONTAINER@ACCOUNT where others have USER@HOST."""


def without_secrets(text: str) -> str:
    """`text` without user and password of the URLs in it, and with `***` as the value of parameters
    whose name says that they are secret, such as password, client_secret, sig and token.

    Passwords that are not percent-encoded may hold spaces and all that separates the parts of a
    URL, as AWS's keys do. So if a URL has a password, all up to the last `@` before the next URL or
    line belongs to it. A text without secrets is returned as it is.
    """
    return _without_secrets(text, MAX_URL_LEVELS)


def without_secrets_in(value: Any) -> Any:
    """`value` with `without_secrets` of every text in its dicts, lists and tuples."""
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, dict):
        return {key: without_secrets_in(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(without_secrets_in(item) for item in value)
    return value


def _without_secrets(text: str, levels: int) -> str:
    return _parameters_hidden(_users_removed(text), levels)


def _users_removed(text: str) -> str:
    parts, position, end = [], 0, 0
    while url := _SCHEME.search(text, position):
        parts.append(text[position : url.end()])
        if end <= url.end():  # else no other URL begins before
            end = _position(_URL_END, text, url.end())
        position = url.end() + _length_of_user(text, url, end)
    return "".join([*parts, text[position:]])


def _length_of_user(text: str, url: re.Match[str], end: int) -> int:
    """Number of characters of `user:password@` or `user@` after `://`. `end` is where the next URL
    begins or the line ends."""
    start = url.end()
    authority = _matched(_AUTHORITY, text, start, end)
    following = text[start + len(authority) : end][:1]
    user, colon, password = authority.partition(":")
    if not colon:
        is_public = url[1].lower() in _WITH_CONTAINER or user == "anonymous"
        return len(authority) + 1 if following == "@" and not is_public else 0
    if authority.startswith("["):  # IPv6
        return 0
    if following != "@" and password.rstrip(_CLOSING).isdigit():
        # A port, unless a password begins like one. A text that begins with the URL is all of it.
        word = text[start:end] if url.start() == 0 else _matched(_WORD, text, start, end)
        query = re.search(r"\?[\w.-]+=", word)
        return word.rfind("@", 0, query.start() if query else len(word)) + 1
    last = text.rfind("@", start, end)
    if last < 0 and text.find("@", end) >= 0:
        last = text.rfind("@", start, _position(_LINE_END, text, start))
    return max(last + 1 - start, 0)


def _position(pattern: re.Pattern[str], text: str, start: int) -> int:
    match = pattern.search(text, start)
    return match.start() if match else len(text)


def _matched(pattern: re.Pattern[str], text: str, start: int, end: int) -> str:
    match = pattern.match(text, start, end)
    return match[0] if match else ""


def _parameters_hidden(text: str, levels: int) -> str:
    # A text that is one URL may have spaces in its parameters.
    alone = _SCHEME.match(text) and not re.search(r"\s", text.partition("?")[0])
    url = _SCHEME.pattern + (".*" if alone else r"\S*")
    return re.sub(url, lambda match: _url_hidden(match, levels), text)


def _url_hidden(match: re.Match[str], levels: int) -> str:
    url = match[0].rstrip(_CLOSING)
    try:
        parts = urlsplit(url)
    except ValueError:  # no URL, such as one with half an IPv6 address
        return f"{match[1]}://{HIDDEN}"
    hidden = SplitResult(
        match[1],
        _pairs_hidden(parts.netloc, levels),
        parts.path,
        _pairs_hidden(parts.query, levels),
        _pairs_hidden(parts.fragment, levels),
    )
    if hidden[1:] == parts[1:]:
        return match[0]
    query = f"?{hidden.query}" if hidden.query else ""
    fragment = f"#{hidden.fragment}" if hidden.fragment else ""
    closing = match[0][len(url) :]
    return f"{hidden.scheme}://{hidden.netloc}{hidden.path}{query}{fragment}{closing}"


def _pairs_hidden(query: str, levels: int) -> str:
    def shown(pair: re.Match[str]) -> str:
        return f"{pair[1]}={HIDDEN}" if _is_secret(pair[1], pair[2], levels - 1) else pair[0]

    return re.sub("(?<![^&;=])([^&;=]+)=([^&;]*)", shown, query)


def _is_secret(name: str, value: str, levels: int) -> bool:
    """Whether a parameter is secret by its name, or its value holds URLs or parameters that are.
    Values nested deeper than `levels` count as secret."""
    plain = re.sub("[^a-z0-9]", "", unquote_plus(name).lower())
    inner = unquote_plus(value)
    return bool(value) and (
        _SECRET_NAME.fullmatch(plain) is not None
        or ("=" in inner and not levels)
        or _without_secrets(inner, levels) != inner
        or _pairs_hidden(inner, levels) != inner
    )
