"""``./run_all.sh``: run the notebooks through papermill and gather what they found.

Imports only the standard library until the command line has been checked, so that run_all.sh can refuse a wrong one
(``--check``) before it makes an environment.
"""

import argparse
import os
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from lab import book, machine
from lab.artifact import plan
from lab.artifact.console import clock, shown

USAGE = 2
INTERRUPTED = 130
NEEDS_THE_DEVICE = "31_attention_kernel"


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="run_all.sh",
        description="Rerun the studies and write notebooks, figures, results.csv, claims.csv and report.html.",
        allow_abbrev=False,
    )
    parser.add_argument("--backend", default="auto", metavar="auto|gpu|cpu|sim", help="default: a CUDA GPU if there is one, else the cpu")
    parser.add_argument("--profile", default="default", metavar="|".join(book.PROFILES), help="how much to run (default: default)")
    parser.add_argument("--only", metavar="10,E3", help="these notebooks only: by number or name, or those that test a claim")
    parser.add_argument("--out", type=Path, default=book.ROOT / "out", metavar="DIR", help="where to write (default: out/)")
    parser.add_argument("--resume", action="store_true", help="skip what already ran with the same parameters and code")
    parser.add_argument("--list", action="store_true", help="list the notebooks: what they ask, which claims they test, how long they take")
    parser.add_argument(
        "--rehearse", action="store_true", help="with --backend gpu: a modelled GPU stands in, to see that everything is in place"
    )
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    # run_all.sh changes into the repository; a relative folder is meant from where the command was typed.
    options.out = Path(os.environ.get("FEATHER_TYPED_IN", ".")).absolute() / options.out
    return options


def main(argv: list[str]) -> int:
    options = parse(argv)
    # Here the command line alone says what is run; what the environment asks of the notebooks would fill its gaps.
    for variable in ("FEATHER_PROFILE", "FEATHER_OUT"):
        os.environ.pop(variable, None)
    os.environ[machine.REHEARSE] = str(int(options.rehearse))
    try:
        if options.rehearse and options.backend != "gpu":
            raise ValueError(f"--rehearse is for --backend gpu, not {options.backend}")
        backend, reason = machine.choose_backend(options.backend)
        jobs = plan.make_jobs(options.only, options.profile, backend)
        if options.rehearse:
            jobs = [job for job in jobs if job.name != NEEDS_THE_DEVICE]
        if options.list:
            list_jobs(jobs)
            others = [entry.name for entry in book.ENTRIES.values() if backend not in entry.minutes] if options.only is None else []
            if others:
                print(f"on other backends only (--backend {'cpu' if backend == 'sim' else 'sim'}): {', '.join(others)}")
            return 0
        plan.check_machine(jobs, backend)
        plan.check_out(options.out)
        if not (options.check or options.list):
            plan.prepare_out(options.out)
    except (ValueError, MemoryError, OSError) as error:
        print(f"run_all.sh: {error}", file=sys.stderr)
        return USAGE
    if options.check:
        print("auto" if options.backend == "auto" or options.rehearse else backend)
        return 0
    print(f"backend {backend}, because {reason}; profile {options.profile}; writing to {shown(options.out)}", flush=True)
    return run(jobs, options, backend)


def list_jobs(jobs: list[plan.Job]) -> None:
    """The notebooks by decade: name, claims, minutes and the question that each asks."""
    wide = max(len(job.name) for job in jobs) if jobs else 0
    claims = max(len(" ".join(job.entry.claims)) for job in jobs) if jobs else 0
    decade = ""
    for job in jobs:
        if job.entry.decade != decade:
            decade = job.entry.decade
            print(f"{decade} {book.DECADES[decade]}")
        minutes = clock(job.expected_seconds) if job.expected_seconds else "not timed"
        question = "" if job.entry.question == job.name else job.entry.question
        print(f"  {job.name:<{wide}}  {' '.join(job.entry.claims):<{claims}}  {minutes:>9}  {question}".rstrip())


def run(jobs: list[plan.Job], options: argparse.Namespace, backend: str) -> int:
    from lab.artifact.notebooks import Outcome, load_outcome, run_notebooks
    from lab.artifact.report import print_claims, write_report

    out, device = options.out, machine.device(backend)
    done = {}
    if options.resume:
        done = {job.name: outcome for job in jobs if (outcome := load_outcome(job, out, device)) is not None}
    todo = [job for job in jobs if job.name not in done]
    for name in done:
        print(f"{name}: already ran with these parameters and this code", flush=True)

    failed: list[Outcome] = []
    began = time.monotonic()
    interrupted, unwritable, killed = False, "", ""
    try:
        for outcome in run_notebooks(todo, out, device, plan.lanes(backend, options.profile)):
            if outcome.error:
                failed.append(outcome)
                print(
                    f"{outcome.name}: FAILED after {clock(outcome.seconds)}\n  {outcome.error}\n  see {shown(outcome.executed)}", flush=True
                )
    except KeyboardInterrupt:
        interrupted = True
    except OSError as error:
        unwritable = str(error)
    except BrokenProcessPool:
        killed = "the process of a notebook was killed, perhaps for want of memory: what had finished is kept, and the same command with --resume goes on"

    try:
        write_report(out, backend, {"notebooks": len(todo), "seconds": round(time.monotonic() - began)})
        print_claims(out)
    except OSError as error:
        unwritable = unwritable or str(error)
    if options.rehearse:
        print(
            f"rehearsed on a modelled GPU, but for {NEEDS_THE_DEVICE}, which needs the device itself: parameters, commands and paths fit; nothing is measured"
        )
    if options.profile == "smoke":
        print("smoke sizes: this shows that everything works; the numbers and verdicts mean nothing")
    print(f"\n{shown(out / 'report.html')} has the figures; all files are in {shown(out)}")
    if interrupted:
        print("run_all.sh: interrupted; what had finished is kept: the same command with --resume goes on", file=sys.stderr)
        return INTERRUPTED
    for outcome in failed:
        print(f"run_all.sh: {outcome.name} failed: {outcome.error} (see {shown(outcome.executed)})", file=sys.stderr)
    if unwritable:
        print(f"run_all.sh: {unwritable}; make room, or mend what keeps {shown(out)} from being written: what had finished is kept, and the "
              "same command with --resume goes on", file=sys.stderr)  # fmt: skip
    if killed:
        print(f"run_all.sh: {killed}", file=sys.stderr)
    return 1 if failed or unwritable or killed else 0


if __name__ == "__main__":
    machine.speak_any_locale()
    sys.exit(main(sys.argv[1:]))
