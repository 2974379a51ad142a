"""``python -m lab.workloads``: the data sets, and fetching them."""

import argparse
import sys
from pathlib import Path

from lab.machine import speak_any_locale
from lab.workloads.fetch import fetch
from lab.workloads.sources import SOURCES, folder, source


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m lab.workloads", description=__doc__.split(": ")[1], allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the data sets, and which files of them are here")
    fetching = commands.add_parser("fetch", help="download a data set from its publisher")
    fetching.add_argument("name", metavar="NAME", help=" | ".join(SOURCES))
    fetching.add_argument("--to", type=Path, metavar="DIR", help="default: FEATHER_DATA, or data/fetched in the repository")
    options = parser.parse_args(argv)
    try:
        if options.command == "list":
            show(folder())
        else:
            fetch(source(options.name), options.to or folder())
    except (ValueError, OSError) as error:
        print(f"lab.workloads: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("lab.workloads: interrupted; what was whole is kept", file=sys.stderr)
        return 130
    return 0


def show(where: Path) -> None:
    print(f"data folder: {where}")
    for one in SOURCES.values():
        print(f"\n{one.name}: {one.what}\n  {one.page}")
        for file in one.files:
            print(f"  {'here   ' if (where / file.path).is_file() else 'missing'} {file.path}")


if __name__ == "__main__":
    speak_any_locale()
    sys.exit(main(sys.argv[1:]))
