"""Bytes to text: which encoding, and what is no text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.readers.encodings import decode


def test_a_few_control_characters_become_spaces() -> None:
    assert decode(b"red \x1b[31m text\x0c" + b"." * 200) == "red  [31m text " + "." * 200


SENTENCES = {
    "cp1252": "Les élèves étaient très fatigués. Où êtes-vous allés cet été ? C’était déjà l’hiver là-bas.",
    "cp1250": "Zażółć gęślą jaźń. Książka leży na półce, a źródło bije wśród gór i dolin, gdzie żyją ludzie.",
    "cp1251": "Москва является столицей России. Город расположен на реке Москве в центре европейской части.",
    "koi8-r": "Москва является столицей России. Город расположен на реке Москве в центре европейской части.",
    "cp1253": "Η Αθήνα είναι η πρωτεύουσα της Ελλάδας και η μεγαλύτερη πόλη της χώρας με πολλά μνημεία.",
    "cp1255": "ירושלים היא בירת ישראל והעיר הגדולה ביותר בה. בעיר חיים אנשים רבים מדתות שונות.",
    "shift_jis": "東京は日本の首都であり、世界で最も人口の多い都市の一つです。毎日多くの人が電車で通勤しています。",
    "gb18030": "北京是中华人民共和国的首都,也是全国的政治和文化中心。每年有很多游客来这里参观故宫和长城。",
    "euc_kr": "서울은 대한민국의 수도이며 가장 큰 도시입니다. 많은 사람들이 매일 지하철을 이용합니다.",
}


@pytest.mark.parametrize("encoding", SENTENCES)
@pytest.mark.parametrize("times", [1, 300])
def test_encodings_from_before_unicode_are_detected(encoding: str, times: int) -> None:
    pytest.importorskip("charset_normalizer")
    text = "\n".join([SENTENCES[encoding]] * times)
    assert decode(text.encode(encoding)) == text


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be", "utf-16", "utf-32"])
def test_unicode_is_detected_with_and_without_a_mark(encoding: str) -> None:
    assert decode("Grüße aus dem Wald.\nZwei".encode(encoding)) == "Grüße aus dem Wald.\nZwei"


@given(st.text(), st.sampled_from(["utf-8-sig", "utf-16", "utf-32"]))
def test_any_text_with_a_mark_comes_back(text: str, encoding: str) -> None:
    plain = "".join(char for char in text if char.isprintable()).lstrip("\ufeff")
    assert decode(plain.encode(encoding)) == plain


def test_damaged_utf8_stays_utf8() -> None:
    assert decode("naïve café Übung ça élan".encode() + b"\xff end") == "naïve café Übung ça élan\ufffd end"
