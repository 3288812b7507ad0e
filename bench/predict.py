"""What a song would take on a GPU, predicted from what the compiled kernels were counted to do. Nothing is measured.

    python bench/predict.py --model turbo --seconds 240 --batch 1 --device a100-40 [--kernels] [--json]
    python bench/predict.py --count [KERNEL ...]  # compile and simulate the kernels anew: bench/results/counted.json
    python bench/predict.py --report              # bench/results/predicted-a100.md and its plot

The launches are the code's own: a step of the transformer and a tile of the decoder are run on tensors without memory,
and every call of a kernel or of the library is written down (calculator/recorded.py). A kernel's time is the longest of
what its products, its memory traffic and its L2 traffic need, plus a graph's cost of each launch; flops and bytes are
its case's at the real size, rounded up to whole tiles and waves, times what the simulator counted beyond them at a few
tiles (calculator/counted.py has the formula). The library's products and attention, and the encoders of text and
lyrics, are the calculator's estimates. How near a kernel comes to the peaks is judged: acefast.sim.roofline.JUDGED and
calculator/work.py's TUNING. Copies to and from the host are left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from bench.calculator.gpus import DEVICES  # noqa: E402
from bench.calculator.song import MODELS, Job  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    """Run the command; prints a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="turbo")
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", choices=DEVICES, default="a100-40")
    parser.add_argument("--kernels", action="store_true", help="show every kernel's share")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--count", nargs="*", metavar="KERNEL", help="compile and simulate kernels, all by default")
    parser.add_argument("--report", action="store_true", help="write the report and its plot")
    args = parser.parse_args(argv)
    if not 0 < args.seconds <= 600 or args.batch < 1:
        parser.error("--seconds must be above 0 and at most 600, --batch at least 1")
    try:
        from bench.calculator import counted, predicted, report
    except ModuleNotFoundError as error:
        parser.error(f"{error.name} is not installed; pip install acefast[gpu], on Linux, works without a GPU")
    if args.count is not None:
        counted.write_counts(predicted.launched_cases(), args.count)
        return 0
    counts = counted.read_counts()
    if args.report:
        report.write(counts)
        return 0
    found = predicted.predict(Job(args.model, args.seconds, args.batch), DEVICES[args.device], counts)
    print(json.dumps(found, indent=1) if args.json else "\n".join(report.song(found, args.kernels)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
