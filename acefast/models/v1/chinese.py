# ruff: noqa: RUF001 (letters and marks that look like others)
"""Chinese lyrics before their pinyin: numbers as Chinese numerals, punctuation as commas.

Source: the text normalisation of chn_text_norm as in acestep/models/lyrics_utils/zh_num2words.py of ace-step/ACE-Step.
Each rule finds its numbers in the whole line and then replaces the first equal text for each, wherever it is: upstream
does so, and a line with the same number twice may show it.
"""

from __future__ import annotations

import re
import string

_DIGITS = "零一二三四五六七八九"
# powers of ten; 10**44 is the last that has a name here
_UNITS = {1: "十", 2: "百", 3: "千", 4: "万"} | {8 + 4 * i: unit for i, unit in enumerate("亿兆京垓秭穰沟涧正载")}

_CURRENCY = "(?:千万|百万|[亿万千百元块角毛分])"
_MEASURES = (
    "[匹张座回场尾条个首阙阵网炮顶丘棵只支袭辆挑担颗壳窠曲墙群腔砣客贯扎捆刀令打手罗坡山岭江溪钟队单双对出口头脚板跳"
    "枝件贴针线管名位身堂课本页家户层丝毫厘分钱两斤铢石钧锱忽寸尺丈里寻常铺程撮勺合升斗盘碗碟叠桶笼盆盒杯斛锅簋篮罐瓶壶"
    "卮盏箩箱煲啖袋钵年月日季刻时周天秒旬纪岁世更夜春夏秋冬代伏辈丸泡粒幢堆根道面片块]|[千微][克米]"
)
_DATE = re.compile(r"\D+((?:(?:[089]\d|(?:19|20)\d{2})年)?(?:\d{1,2}月(?:\d{1,2}[日号])?)?)")
_MONEY = re.compile(rf"\D(\d+(?:\.\d+)?[多余几]?{_CURRENCY}(?:\d{_CURRENCY}?)?)")
_MOBILE = re.compile(r"\D((?:\+?86 ?)?1(?:[38]\d|5[0-35-9]|7[678]|9[89])\d{8})\D")
_PHONE = re.compile(r"\D((?:0(?:10|2[1-3]|[3-9]\d{2})-?)?[1-9]\d{6,7})\D")
_DECIMAL = r"\d+(?:\.\d+)?"
_MARKS = (  # what becomes a comma
    string.punctuation + "·–—‘’‛“”„‟…‧、。〃〈〉《》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿﹏"
    "！＂＃＄％＆＇（）＊＋，－／：；＜＝＞？＠［＼］＾＿｀｛｜｝～｟｠｡｢｣､"
)
_COMMAS = str.maketrans(_MARKS, "," * len(_MARKS))


def numeral(number: str) -> str:
    """A number in Chinese numerals: "2500" is 两千五百, "105" is 一百零五, "0.5" is 零点五."""
    whole, _, fraction = number.partition(".")
    symbols = _symbols(whole) if len(whole) > 1 else [int(whole)]
    text = ""
    for i, symbol in enumerate(symbols):
        before, behind = symbols[i - 1] if i else "", symbols[i + 1] if i + 1 < len(symbols) else ""
        if symbol == 2 and behind in _LARGE and (i == 0 or before in _LARGE):
            text += "两"
        else:
            text += symbol if isinstance(symbol, str) else _DIGITS[symbol]
    if fraction:
        text = (text or "零") + "点" + digits(fraction)
    return text[1:] if text.startswith("一十") else text


_LARGE = set(_UNITS.values()) - {"十"}


def _symbols(number: str) -> list[int | str]:
    """Digits and the units they count; a gap of zeros before the last digit of a group is one zero."""
    rest = number.lstrip("0")
    if len(rest) <= 1:
        return [0] * (len(number) > 1 and bool(rest)) + [int(digit) for digit in rest]
    power = max(power for power in _UNITS if power < len(rest))
    return [*_symbols(number[:-power]), _UNITS[power], *_symbols(rest[-power:])]


def digits(number: str) -> str:
    """The digits one by one, nothing else: "010-88" is 零一零八八."""
    return "".join(_DIGITS[int(digit)] for digit in re.findall(r"\d", number))


def _date(text: str) -> str:
    year, mark, rest = text.rpartition("年")
    return digits(year) + mark + re.sub(r"\d+", lambda match: numeral(match.group()), rest)


def _amounts(text: str) -> str:
    for number in re.findall(_DECIMAL, text):
        text = text.replace(number, numeral(number))
    return text


def _fraction(text: str) -> str:
    over, under = text.split("/")
    return f"{numeral(under)}分之{numeral(over)}"


_RULES = (  # in this order; each replaces what its group, or all of it, has found
    (_DATE, _date),
    (_MONEY, _amounts),
    (_MOBILE, digits),
    (_PHONE, digits),
    (re.compile(r"(?<!\d)\d+/\d+"), _fraction),
    (re.compile(rf"(?<!\d){_DECIMAL}[%％]"), lambda text: "百分之" + numeral(text[:-1])),
    (re.compile(rf"(?<!\d)({_DECIMAL})[多余几]?(?:{_MEASURES})"), numeral),
    (re.compile(r"\d{4,32}"), digits),
    (re.compile(_DECIMAL), numeral),
)


def normalize(text: str) -> str:
    """``text`` with its numbers as Chinese numerals and its punctuation, Chinese and ASCII, as ASCII commas."""
    text = f"^{text}$"  # the rules look for what is no digit around a number
    for pattern, say in _RULES:
        for found in pattern.findall(text):
            text = text.replace(found, say(found), 1)
    for found, left, right in re.findall("(([a-zA-Z]+)二([a-zA-Z]+))", text):  # as in B2B
        text = text.replace(found, f"{left}2{right}", 1)
    return text.lstrip("^").rstrip("$").translate(_COMMAS)
