"""Texts on which a converted tokenizer must agree with the original, token for token.

All tasks and languages of PaliGemma's prompts, all `<loc>` and `<seg>` tokens, runs of each kind of
white space, and texts that tokenizers are known to split differently: digits, emoji, code, scripts,
noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from paligemma_edge.runtime.contract import LOC_COUNT, SEG_COUNT

LANGUAGES = (
    "ar bn cs da de el en es fa fi fil fr he hi hr hu id it ja ko mi nl no pl pt quz ro ru sv sw "
    "te th tr uk vi zh"
)
LOC_PIECES = tuple(f"<loc{i:04d}>" for i in range(LOC_COUNT))
SEG_PIECES = tuple(f"<seg{i:03d}>" for i in range(SEG_COUNT))

_TASKS = (
    "cap {}",
    "caption {}",
    "describe {}",
    "answer {} where is the cow standing?",
    "question {} on the beach",
)
_PROMPTS = (
    "ocr",
    "detect cat",
    "detect cat ; dog ; red car",
    "segment the left-most person ; bird",
    "caption <loc0100><loc0200><loc0300><loc0400>",
    "Where is the cow standing?",
    "What is the total of 1,234.56 and 0xFF on 2024-02-29?",
    "<loc0012><loc0345><loc0678><loc1023> cat ; <loc0000><loc0001><loc0002><loc0003> dog",
    "<loc0012><loc0345><loc0678><loc1023><seg000><seg127><seg064> a cat",
    "<loc0012> <seg000>x<loc 0012><loc12345><loc9999><seg128><seg1>loc0001>",
)
_TEXTS = (
    "answer de Wo steht die Kuh? Äpfel, Öl und Straße",
    "answer fr Où est la vache ? Ça va, l’été, œuf",
    "answer el Πού στέκεται η αγελάδα;",
    "answer ru Где стоит корова? Ёж",
    "answer ar أين تقف البقرة؟",
    "answer he איפה עומדת הפרה?",
    "answer hi गाय कहाँ खड़ी है?",
    "answer bn গরুটি কোথায় দাঁড়িয়ে আছে?",
    "answer te ఆవు ఎక్కడ నిలబడి ఉంది?",
    "answer th วัวยืนอยู่ที่ไหน",
    "answer ja 牛はどこに立っていますか？ｶﾀｶﾅ",
    "answer ko 소는 어디에 서 있나요?",
    "answer zh 牛站在哪里？龘𠮷",
    "answer vi Con bò đang đứng ở đâu?",
    "answer tr İneğin ığdır şapkası nerede?",
    "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \u2764\ufe0f",
    "e\u0301 é \u212b Å \ufb01 ﬁ ① ² \u00a0 \u2003 \u200b \ufeff \ufffd",
    " a", "a ", "  a  b   c    d", "▁a▁▁b", " ", "  ", "\t", " \t \t\t", "a\tb", "",
    "\n", "\n\n", "a\n\n\nb", "\n \n", "a\r\nb", "x" * 300, "0123456789" * 8, "\x00\x01\x7f",
    "def f(x):\n    return {'a': x[0] ** 2}  # why?\n\tpass",
    "<table><tr><td>1</td></tr></table> &amp; </s><s> <2en> [INST] <0x41> <unused7>",
)  # fmt: skip

# Blank, tab, newline, carriage return, both, no-break, em and ideographic space, vertical tab.
_WHITE_SPACE = (" ", "\t", "\n", "\r", "\r\n", "\u00a0", "\u2003", "\u3000", "\v")
_LONGEST_RUN = 64  # Gemma has pieces of up to 31 blanks and 31 newlines


def probe_texts() -> Iterator[str]:
    """Every probe text; the same ones in every run."""
    for language in LANGUAGES.split():
        yield from (task.format(language) for task in _TASKS)
    yield from (prompt + end for prompt in _PROMPTS for end in ("", "\n"))
    yield from _TEXTS
    yield "".join(LOC_PIECES)
    yield "".join(SEG_PIECES)
    yield " ".join((*LOC_PIECES[::7], *SEG_PIECES[::3]))
    yield from random_texts(np.random.default_rng(0), 400)
    yield from white_space()


def white_space() -> Iterator[str]:
    """Runs of each kind of white space, of every length: leading, inner, trailing, alone, mixed."""
    for space in _WHITE_SPACE:
        for length in range(1, _LONGEST_RUN + 1):
            run = space * length
            yield from (run, f"C{run}", f"{run}C", f"the{run}cat", f"<loc0001>{run}<seg001>{run};")
    rng = np.random.default_rng(1)
    for _ in range(200):
        runs = [
            _WHITE_SPACE[kind] * int(rng.integers(1, 40))
            for kind in rng.integers(0, len(_WHITE_SPACE), int(rng.integers(2, 6)))
        ]
        yield "".join(runs)
        yield "cat".join(("", *runs, ""))


def texts_around(pieces: Iterable[str]) -> Iterator[str]:
    """Each piece in the places where a tokenizer may match it otherwise."""
    for piece in pieces:
        yield from (piece, f"x{piece}x", f" {piece} ", f"a {piece}{piece}\n{piece}.")
        yield from (f"  {piece}  <loc0001>{piece}<seg001>", piece.upper(), piece[:-1])


def random_texts(rng: np.random.Generator, count: int) -> Iterator[str]:
    """Strings of letters, of any characters, and of the probe texts' words, shuffled."""
    words = " ".join((*_PROMPTS, *_TEXTS)).split(" ")
    for number in range(count):
        length = int(rng.integers(1, 40))
        if number % 4 == 0:
            yield "".join(map(chr, rng.integers(32, 127, length)))
        elif number % 4 == 1:
            yield "".join(_character(int(code)) for code in rng.integers(0, 0x10FFFF, length))
        elif number % 4 == 2:
            yield "".join(_character(int(code)) for code in rng.integers(0, 0x3000, length))
        else:
            yield " ".join(words[i] for i in rng.integers(0, len(words), length))


def _character(code: int) -> str:
    return chr(code) if not 0xD800 <= code < 0xE000 else " "
