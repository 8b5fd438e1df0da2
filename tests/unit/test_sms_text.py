"""The text of an SMS arrives as it was written, but for what is dangerous."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vendors.sms_text import clean_text


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
