"""Renew language.json: beside each line of lyrics the language that ACE-Step's own front end takes it for.

    python tests/golden/v1/make_language.py --checkout PATH

PATH is a checkout of github.com/ace-step/ACE-Step (commit d612523), from which its segmenter is imported; py3langid
must be 0.3.0, which it pins. The lines, written for this test, are read from the file itself: fifteen or more of each
of the 17 languages that the model has, and "mixed" ones. A new line goes in with any label.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

FILE = Path(__file__).with_name("language.json")


def write(file: Path, table: dict[str, list[list[str]]]) -> None:
    """One pair a line."""
    groups = [
        f"  {json.dumps(name)}: [\n" + ",\n".join(f"    {json.dumps(p, ensure_ascii=False)}" for p in pairs) + "\n  ]"
        for name, pairs in table.items()
    ]
    file.write_text("{\n" + ",\n".join(groups) + "\n}\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkout", required=True)
    sys.path.insert(0, parser.parse_args().checkout)
    from acestep.language_segmentation import LangSegment, language_filters

    segment = LangSegment()
    segment.setfilters(language_filters.default)

    def label(line: str) -> str:
        segment.getTexts(line)
        counts = [language for language, _ in segment.getCounts()]
        return counts[1] if counts[0] == "en" and len(counts) > 1 else counts[0]

    table = json.loads(FILE.read_text(encoding="utf-8"))
    write(FILE, {name: [[line, label(line)] for line, _ in pairs] for name, pairs in table.items()})


if __name__ == "__main__":
    main()
