"""Renew cleaning.json: beside each line of lyrics what ACE-Step's own cleaner makes of it, group by group a language.

    python tests/golden/v1/make_cleaning.py --checkout PATH

PATH is a checkout of github.com/ace-step/ACE-Step (commit d612523), from which its lyric tokenizer is imported, without
a vocabulary; spacy, which it imports and does not need here, is a stand-in. num2words 0.5.14, pypinyin 0.53.0,
hangul-romanize 0.1.0, cutlet 0.5.2 with unidic-lite 1.0.8. The lines, written for this test, are read from the file.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from unittest.mock import MagicMock

sys.path.insert(0, str(Path(__file__).parent))
from make_language import write

FILE = Path(__file__).with_name("cleaning.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkout", required=True)
    sys.path.insert(0, parser.parse_args().checkout)
    sys.modules |= {f"spacy.lang.{code}": MagicMock() for code in ("ar", "en", "es", "ja", "zh")}
    sys.modules |= {"spacy": MagicMock(), "spacy.lang": MagicMock()}
    from acestep.models.lyrics_utils.lyric_tokenizer import VoiceBpeTokenizer

    cleaner = VoiceBpeTokenizer(vocab_file=None)
    table = json.loads(FILE.read_text(encoding="utf-8"))
    write(
        FILE,
        {code: [[line, cleaner.preprocess_text(line, code)] for line, _ in pairs] for code, pairs in table.items()},
    )


if __name__ == "__main__":
    main()
