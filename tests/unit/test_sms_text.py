"""The text of an SMS arrives as it was written, but for what is dangerous."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vendors.provider import UnsendableError
from vendors.settings import SmsKeys
from vendors.sms_text import Parts, checked_parts, clean_text, count_parts


@pytest.mark.parametrize(
    "text",
    [
        "Total 10\u00a0000\u00a0EUR",
        "1\u202f234,50\u2009€",
        "東京\u3000都",
        "a\u2003b",
        "tab\there",
        "zwnj \u200c می\u200cخواهم",
        "क्\u200dष",
        "left\u200eright\u200f",
        "word\u2060joiner",
        "soft\u00adhyphen",
        "👩\u200d💻 ❤\ufe0f",
        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        "🩷 🫨 \U0001fae9",
        "unassigned \U0001faff",
        "\u202eabc\u202c",
    ],
)
def test_text_arrives_as_it_was_written(text: str) -> None:
    assert clean_text(text) == text


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_only_control_characters_change(text: str) -> None:
    cleaned = clean_text(text)
    kept = [char for char in text if unicodedata.category(char) not in ("Cc", "Zl", "Zp")]
    assert [char for char in cleaned if char not in "\t\n "] == [char for char in kept if char != " "]
    assert not any((ord(char) < 32 and char not in "\t\n") or 0x7F <= ord(char) < 0xA0 for char in cleaned)
    assert clean_text(cleaned) == cleaned


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\r\nb", "a\nb"),
        ("a\rb", "a\nb"),
        ("a\u2028b\u2029c\x85d", "a\nb\nc\nd"),
        ("a\0\x1b\x7fb", "ab"),
        ("a\x9bb", "a b"),
        ("\ud800a", "a"),
    ],
)
def test_line_ends_are_one_and_controls_are_gone(text: str, expected: str) -> None:
    assert clean_text(text) == expected


@pytest.mark.parametrize(
    ("text", "unicode", "number"),
    [
        ("", False, 1),
        ("a" * 160, False, 1),
        ("a" * 161, False, 2),
        ("a" * 306, False, 2),
        ("a" * 307, False, 3),
        ("äöüß@£\n", False, 1),
        ("€" * 80, False, 1),  # an escape and a character each
        ("€" * 81, False, 2),
        ("a" * 152 + "€" + "a" * 20, False, 2),
        ("€" * 153, False, 3),  # 76 to a part: no part ends within an escape
        ("`", True, 1),
        ("\t", True, 1),
        ("ç", True, 1),  # its capital alone is in the alphabet
        ("ж" * 70, True, 1),
        ("ж" * 71, True, 2),
        ("ж" * 134, True, 2),
        ("ж" * 135, True, 3),
        ("😀" * 35, True, 1),
        ("😀" * 66, True, 2),
        ("😀" * 67, True, 3),  # 33 to a part: no part ends within a pair
    ],
)
def test_parts_of_a_text(text: str, unicode: bool, number: int) -> None:
    assert count_parts(text) == Parts(unicode, number)


@given(st.text(max_size=800))
def test_parts_hold_the_text_and_are_not_one_too_many(text: str) -> None:
    unicode, number = count_parts(text)
    units = (
        len(text.encode("utf-16-le", "surrogatepass")) // 2
        if unicode
        else len(text) + sum(map(text.count, "\f^{}\\[~]|€"))
    )
    one, each = (70, 67) if unicode else (160, 153)
    assert number == 1 if units <= one else -(-units // each) <= number <= -(-units // (each - 1))


def test_text_of_too_many_parts_cannot_be_sent() -> None:
    assert checked_parts("a" * 153 * 3, 3) == Parts(False, 3)
    with pytest.raises(UnsendableError, match=r"4 parts of GSM-7, more than max_parts = 3"):
        checked_parts("a" * (153 * 3 + 1), 3)
    with pytest.raises(UnsendableError, match=r"2 parts of UCS-2, more than max_parts = 1"):
        checked_parts("ж" * 71, 1)


def test_1600_characters_are_never_over_the_default() -> None:
    assert count_parts("ж" * 1_600).number == SmsKeys().max_parts
