"""Run one target of `dns_fuzz.py` under a coverage-guided fuzzer, atheris, for some seconds or runs.

What breaks a rule is saved as a file, and the exit code is not 0.
"""

import argparse
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parent))
with atheris.instrument_imports(include=["netplug.dns"]):
    import dns_fuzz


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=dns_fuzz.TARGETS)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--runs", type=int, default=-1, help="end after so many inputs, seeds included; -1: any number")
    parser.add_argument("--seed", type=int, default=0, help="of the fuzzer's choices; 0: another one each time")
    parser.add_argument("--corpus", type=Path, required=True, help="folder of inputs: the seeds, and what is found")
    parser.add_argument("--crashes", type=Path, required=True, help="folder for inputs that break a rule")
    args = parser.parse_args()
    dns_fuzz.write_seeds(args.target, args.corpus)
    args.crashes.mkdir(parents=True, exist_ok=True)
    options = (
        *(f"-max_total_time={args.seconds}", f"-runs={args.runs}", f"-artifact_prefix={args.crashes}/"),
        *("-max_len=1500", "-len_control=0", "-timeout=20", "-rss_limit_mb=2048", "-print_final_stats=1"),
        f"-seed={args.seed}",
    )
    with dns_fuzz.target(args.target) as run:
        atheris.Setup([sys.argv[0], str(args.corpus), *options], run)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
