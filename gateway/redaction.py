"""Takes what identifies a person, and what opens a door, out of texts before they are stored.

E-mail addresses, phone numbers, cards, bank accounts, IP addresses, social security numbers, labelled
dates of birth, and secrets that look like secrets. Names and street addresses are beyond patterns, and
what somebody hides on purpose ("bob at example dot com") is not looked for.

One pass over one pattern finds what may be something; arithmetic and context decide whether it is. All
repetition is bounded or possessive, and begins only where a word begins: the time is linear in the text.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import Any

#: Keys whose strings are words of the protocol, not of a person.
_PROTOCOL_KEYS = frozenset({"role", "type", "model", "object"})
#: Objects under these keys, or with these keys, are tools: their names are the application's.
_TOOL_KEYS = frozenset({"function", "tool_choice", "custom"})
_TOOL_MARKS = frozenset({"arguments", "parameters", "input_schema", "input"})
#: Keys of files and sounds. Nobody can look into them here, so they are not kept.
_BLOB_KEYS = frozenset({"data", "file_data"})
_BLOB_LENGTH = 64
_BLOB = re.compile(r"[A-Za-z0-9+/_=\s-]*+\Z")
_DATA_URL = re.compile(r"data:[\w.+/-]{0,80}(?:;[\w.=-]{1,80}){0,4};base64,")
REMOVED = "[removed]"

#: Without any of these nothing of all this can stand in a text.
_WORTH_A_LOOK = re.compile(r"[\d@]")

_MONTH = (
    r"(?:jan(?:uary|uar)?|feb(?:ruary|ruar)?|mar(?:ch)?|märz|apr(?:il)?|may|mai|june?|juni|july?|juli|aug(?:ust)?"
    r"|sep(?:t|tember)?|o[ck]t(?:ober)?|nov(?:ember)?|de[cz](?:ember)?)\.?"
)
_DATE = (
    r"(?:\d{1,2}[./-] ?\d{1,2}[./-] ?(?:\d{4}|\d{2})|\d{4}[./-]\d{1,2}[./-]\d{1,2}"
    rf"|\d{{1,2}}(?:st|nd|rd|th|\.)? (?:of )?{_MONTH},? \d{{4}}|{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?,? \d{{4}})"
)
_PHONE_LABEL = (
    r"(?:phone|tele(?:phone|fon)|tel|mobile|mobil|cell|handy|fax|whatsapp"
    r"|(?:call|text|reach|ring) (?:me|us|him|her|them))"
)
#: (kind, pattern); within a place the first that holds wins. All stand where no word goes on.
_PATTERNS = (
    (
        "secret_block",
        r"-----BEGIN [A-Z0-9 ]{0,40}+-----(?:[^-]|-(?!----))*+(?:-----END [A-Z0-9 ]{0,40}+-----)?",
    ),
    (
        "secret_token",
        r"(?:eyJ[\w-]{8,}+(?:\.[\w-]++){1,4}+|sk-[\w-]{16,}+|[sr]k_(?:live|test)_\w{16,}+"
        r"|gh[pousr]_[A-Za-z0-9]{30,}+|github_pat_\w{22,}+|glpat-[\w-]{20,}+|(?:AKIA|ASIA)[A-Z0-9]{16}"
        r"|AIza[\w-]{35}|xox[abeoprs]-[\w-]{10,}+|hf_[A-Za-z0-9]{30,}+|npm_[A-Za-z0-9]{36}"
        r"|SG\.[\w-]{16,32}\.[\w-]{30,}+|ya29\.[\w-]{20,}+|ma_live_[\w-]{16,}+)(?!\w)",
    ),
    (
        "labelled_secret",
        r"(?i:(?:passwor[dt]|passwd|pwd|secret|api[_ -]?key|access[_ -]?token|auth[_ -]?token)"
        r"(?:[\"']?[ ]?[:=][ ]?[\"']?| is )|bearer )(?P<secret_value>[^\s\"'<>,;]{8,100}+)",
    ),
    (
        "labelled_birth",
        r"(?i:(?:born|birth ?da(?:te|y)|date of birth|d\.?o\.?b\.?|geboren|geburtsdatum|geb\.|née? le"
        r"|fecha de nacimiento)[\"']?[ :=]{0,3}(?:is|was|on|am|the|del?)?[ :=\"']{0,3}"
        rf"(?P<birth_value>{_DATE})(?!\d))",
    ),
    (
        "labelled_phone",
        rf"(?i:{_PHONE_LABEL}(?:[ ]?(?:number|no|nr|nummer))?[\"'.]{{0,2}}[ ]?(?:is|at|on|under|:|=|#)?)"
        r"[ \"']{0,2}"
        r"(?P<phone_value>[+(]{0,2}\d(?:[ ().\-/]{0,3}\d){5,16})(?!\w)",
    ),
    ("email", r"(?<![\w.+%-])[\w.+%-]++@[\w-]++(?:\.[\w-]++)++"),
    ("iban", r"(?!\d)[A-Za-z]{2}\d{2}(?:[ -]?[A-Za-z0-9]){11,30}+"),
    (
        "ipv6",
        r"(?<![:.])(?:[0-9A-Fa-f]{1,4}:|::)(?:[0-9A-Fa-f]{0,4}:){1,6}(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f]{0,4})(?![\w:])",
    ),
    ("ipv4", r"(?<!\.)\d{1,3}(?:\.\d{1,3}){3}(?!\.?\w)"),
    ("ssn", r"(?<!-)\d{3}-\d{2}-\d{4}(?!-?\w)"),
    (
        "card",
        r"(?<!\d[-.])(?:\d{13,19}|\d{4}(?P<fours>[ -])\d{4}(?P=fours)\d{4}(?P=fours)\d{4}(?:(?P=fours)\d{3})?"
        r"|3\d{3}(?P<amex>[ -])\d{6}(?P=amex)\d{4,5})(?![-.]?\w)",
    ),
    (
        "phone",
        r"(?:\(?\+ ?\(?[1-9](?:[ ().\-/\u00a0]{0,3}\d){6,14}"  # +49 (0)170 1234567
        r"|00(?:[1-9]\d{0,2}[ .\-/]|[134]\d?)(?:[ ().\-/]{0,3}\d){6,12}"  # 0049 170 1234567
        r")(?!\w)",
    ),
    (
        "national",
        r"(?<![\d$€£][.,/-])(?:"
        r"(?:1[ .-])?(?:\([2-9]\d{2}\)[ ]?|[2-9]\d{2}[ .-])\d{3}[ .-]\d{4}"  # (415) 555-2671
        r"|\(0?\d{2,4}\)[ ]?\d{3,5}[ .-]?\d{3,5}"  # (11) 91234-5678
        r"|0[1-9](?:[ .-]\d{2}){4}"  # 01 23 45 67 89
        r"|\(?0[1-9]\d{1,4}\)?[ ]?[ /-][ ]?\d{2,8}(?:[ -]\d{2,6}){0,3}"  # 030 12345678, 020 7946 0958
        r"|0(?:1[567]\d{8,9}|7\d{9}|[67]\d{8})"  # 01701234567
        r"|[6-9]\d{4}[ -]\d{5}"  # 98765 43210
        r"|1[3-9]\d(?P<threes>[ -])\d{4}(?P=threes)\d{4}"  # 138 1234 5678
        r")(?![.,/-]?\d|\w)",
    ),
)
_ANY = re.compile("(?<!\\w)(?:" + "|".join(f"(?P<{kind}>{pattern})" for kind, pattern in _PATTERNS) + ")")
_FIRST_WORD = re.compile(r"\W?\w*+")

_LETTER_AND_DIGIT = re.compile(r"(?=\D*+\d)\d*+\D")
_REST_OF_SECRET = re.compile(r"[^\s\"'<>,;]*+")
_BASE64_RUN = re.compile(r"[A-Za-z0-9+/=]{24}")
_CARD_HEADS = re.compile(r"3[0-9]|4|5[0-9]|6[0-9]|2[2-7]")
_VERSION_BEFORE = re.compile(r"(?:versions?|release|ver|build|v|section|§)[ .:=]{0,2}\Z", re.IGNORECASE)
_NUMBER_BEFORE = re.compile(
    r"(?:order|invoice|receipt|ticket|case|article|item|part|tracking|id|ref|reference|isbn|sku|no|nr|serial|#)"
    r"(?:[ _-]?(?:number|no|nr|id))?[ .:=#]{0,3}\Z",
    re.IGNORECASE,
)
_MONEY_BEFORE = re.compile(r"(?:[$€£¥]|USD|EUR|GBP)[ ]?\Z")
_DATE_AT_BEGIN = re.compile(r"\(?\d{1,4}[./-]\d{1,2}[./-](?:19|20)\d\d|(?:19|20)\d\d[./-]\d{2}[./-]\d{2}")
#: Groups of digits before it: the end of some other number.
_GROUP_BEFORE = re.compile(r"\w\d{2}[ -]\Z")
_CONTEXT = 24
_NOT_DIGIT = re.compile(r"\D")

#: ISO 13616: how long the account numbers of a country are.
_IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO", 16: "BE", 18: "DK FO FI GL NL FK SD", 19: "MK SI", 20: "AT BA EE KZ XK LT LU MN",
        21: "HR LV LI CH", 22: "BH BG CR GE DE IE ME RS GB VA", 23: "TL GI IQ IL AE OM SO",
        24: "AD CZ MD PK RO SA SK ES SE TN VG DZ", 25: "LY PT ST", 26: "IS TR", 27: "BI DJ FR GR IT MC MR SM",
        28: "AL AZ BY CY DO SV GT HU LB NI PL", 29: "BR EG PS QA UA", 30: "JO KW MU YE", 31: "MT SC",
        32: "LC", 33: "RU",
    }.items()
    for country in countries.split()
}  # fmt: skip


def redact(text: str) -> str:
    """The text with placeholders such as ``[email]`` where something stood.

    >>> redact("Write to ann@example.com or call +49 170 1234567 before 2024.")
    'Write to [email] or call [phone] before 2024.'
    """
    if _WORTH_A_LOOK.search(text) is None:
        return text
    pieces: list[str] = []
    done = 0
    for start, end, kind in _findings(text):
        pieces += (text[done:start], "[", kind, "]")
        done = end
    if not pieces:
        return text
    pieces.append(text[done:])
    return "".join(pieces)


def redact_json(value: Any) -> Any:
    """A JSON value with all its texts redacted; roles, types and names of tools stay. Never changes it.

    Pictures, sounds and files in base64 are left out: nobody has looked into them.
    """
    return _redacted(value, "")


def _redacted(value: Any, key: str) -> Any:
    if isinstance(value, str):
        return value if key in _PROTOCOL_KEYS else _redacted_text(value, key)
    if isinstance(value, list):
        return [_redacted(each, key) for each in value]
    if isinstance(value, dict):
        keeps_name = key in _TOOL_KEYS or not _TOOL_MARKS.isdisjoint(value)
        return {
            redact(name): each if name == "name" and keeps_name else _redacted(each, name)
            for name, each in value.items()
        }
    return value


def _redacted_text(text: str, key: str) -> str:
    if text.startswith("data:") and (head := _DATA_URL.match(text)):
        return head[0] + REMOVED
    if key in _BLOB_KEYS and len(text) > _BLOB_LENGTH and _BLOB.match(text):
        return REMOVED
    return redact(text)


def _findings(text: str) -> Iterator[tuple[int, int, str]]:
    """(start, end, kind) from left to right. After a false alarm the search goes on behind its first word."""
    position = 0
    while (match := _ANY.search(text, position)) is not None:
        assert match.lastgroup is not None  # the outermost: the kind
        found = _JUDGES[match.lastgroup](text, match)
        if found is not None:
            yield found
            position = found[1]
        else:
            word = _FIRST_WORD.match(text, match.start())
            position = max(match.start() + 1, word.end() if word else 0)


Found = tuple[int, int, str] | None


def _judge_block(text: str, match: re.Match[str]) -> Found:
    block = match[0]
    whole = "-----END" in block[-60:] and "PRIVATE" in block[:60]
    return (match.start(), match.end(), "secret") if whole or _BASE64_RUN.search(block, 12) else None


def _judge_token(text: str, match: re.Match[str]) -> Found:
    return (match.start(), match.end(), "secret")


def _judge_labelled_secret(text: str, match: re.Match[str]) -> Found:
    start, end = match.span("secret_value")
    if not _LETTER_AND_DIGIT.match(text, start, end) or text[start] == "[":
        return None
    rest = _REST_OF_SECRET.match(text, end)
    end = rest.end() if rest else end
    while text[end - 1] in ".)!?":
        end -= 1
    return start, end, "secret"


def _judge_birth(text: str, match: re.Match[str]) -> Found:
    return (*match.span("birth_value"), "date_of_birth")


def _judge_labelled_phone(text: str, match: re.Match[str]) -> Found:
    value = match["phone_value"]
    is_number = 6 <= _digit_count(value) <= 15 and not _DATE_AT_BEGIN.match(value)
    return (*match.span("phone_value"), "phone") if is_number else None


def _judge_email(text: str, match: re.Match[str]) -> Found:
    start, end = match.span()
    top = text[text.rindex(".", start, end) + 1 : end]
    start += len(match[0]) - len(match[0].lstrip(".%-"))  # punctuation before it
    return (start, end, "email") if len(top) >= 2 and not top.isdigit() and text[start] != "@" else None


def _judge_iban(text: str, match: re.Match[str]) -> Found:
    candidate = match[0]
    length = _IBAN_LENGTHS.get(candidate[:2].upper())
    if length is None:
        return None
    places = [place for place, each in enumerate(candidate) if each not in " -"]
    if len(places) < length:
        return None
    end = places[length - 1] + 1
    following = text[match.start() + end : match.start() + end + 1]
    compact = "".join(candidate[place] for place in places[:length]).upper()
    number = "".join(str(int(each, 36)) for each in compact[4:] + compact[:4])
    is_account = int(number) % 97 == 1 and not following.isalnum()
    return (match.start(), match.start() + end, "iban") if is_account else None


def _judge_ipv6(text: str, match: re.Match[str]) -> Found:
    address = match[0]
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        return None
    groups = [group for group in address.split(":") if group]
    is_one = any(each.isdigit() for each in address) and (len(groups) > 2 or len(groups[0]) == 4)
    return (match.start(), match.end(), "ip") if is_one else None


def _judge_ipv4(text: str, match: re.Match[str]) -> Found:
    octets = match[0].split(".")
    is_address = all(int(each) <= 255 and (each == "0" or not each.startswith("0")) for each in octets)
    is_version = _VERSION_BEFORE.search(_before(text, match))
    return (match.start(), match.end(), "ip") if is_address and not is_version else None


def _judge_ssn(text: str, match: re.Match[str]) -> Found:
    area, group, serial = match[0].split("-")
    is_issued = area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"
    return (match.start(), match.end(), "ssn") if is_issued else None


def _judge_card(text: str, match: re.Match[str]) -> Found:
    digits = _NOT_DIGIT.sub("", match[0])
    if not _CARD_HEADS.match(digits) or not _passes_luhn(digits):
        return None
    return (match.start(), match.end(), "card")


def _passes_luhn(digits: str) -> bool:
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if place % 2 else 1)
        total += value - 9 if value > 9 else value
    return total % 10 == 0 and len(set(digits)) > 1


def _judge_phone(text: str, match: re.Match[str]) -> Found:
    is_tail = match[0].startswith("0") and _GROUP_BEFORE.search(_before(text, match))
    is_number = 8 <= _digit_count(match[0]) <= 17 and not is_tail
    return _number_found(match) if is_number else None


def _number_found(match: re.Match[str]) -> Found:
    opens_more = match[0].startswith("(") and match[0].count("(") > match[0].count(
        ")"
    )  # a bracket around the number
    return match.start() + opens_more, match.end(), "phone"


def _judge_national(text: str, match: re.Match[str]) -> Found:
    candidate = match[0]
    if not 8 <= _digit_count(candidate) <= 13 or _DATE_AT_BEGIN.match(candidate):
        return None
    before = _before(text, match)
    if candidate.startswith("0") and _GROUP_BEFORE.search(before):
        return None
    if _NUMBER_BEFORE.search(before) or _MONEY_BEFORE.search(before):
        return None
    return _number_found(match)


def _before(text: str, match: re.Match[str]) -> str:
    return text[max(0, match.start() - _CONTEXT) : match.start()]


def _digit_count(text: str) -> int:
    return sum(map(str.isdigit, text))


_JUDGES: dict[str, Callable[[str, re.Match[str]], Found]] = {
    "secret_block": _judge_block,
    "secret_token": _judge_token,
    "labelled_secret": _judge_labelled_secret,
    "labelled_birth": _judge_birth,
    "labelled_phone": _judge_labelled_phone,
    "email": _judge_email,
    "iban": _judge_iban,
    "ipv6": _judge_ipv6,
    "ipv4": _judge_ipv4,
    "ssn": _judge_ssn,
    "card": _judge_card,
    "phone": _judge_phone,
    "national": _judge_national,
}
