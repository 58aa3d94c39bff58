"""``vlm-depth <verb>``: one parser, verbs imported only when they run, one error handler."""

import argparse
from importlib import import_module
import logging
import sys

from vlm_depth_ros import __version__
from vlm_depth_ros.core.errors import VlmDepthError
from vlm_depth_ros.core.threads import nap_between_operations
from vlm_depth_ros.tools.arguments import VERBS


def main(argv: list[str] | None = None) -> int:
    """Run one verb; 0 when it worked, 1 and one line on a user's mistake, 2 on a wrong call."""
    parser = argparse.ArgumentParser(
        prog='vlm-depth', description='Depth for robots: make, judge and run weights.'
    )
    parser.add_argument('--version', action='version', version=__version__)
    parser.add_argument('--debug', action='store_true', help='show the traceback of an error')
    verbs = parser.add_subparsers(dest='verb', required=True, metavar='VERB')
    for name, (add_flags, summary) in VERBS.items():
        text = f'{summary[0].upper()}{summary[1:]}.'
        add_flags(verbs.add_parser(name, help=summary, description=text))
    args = parser.parse_args(argv)

    nap_between_operations()
    logging.basicConfig(level=logging.INFO, format='%(message)s')
    try:
        return import_module(f'vlm_depth_ros.tools.{args.verb.replace("-", "_")}').run(args)
    except VlmDepthError as err:
        if args.debug:
            raise
        # One line, though some libraries explain themselves in several.
        print(f'vlm-depth {args.verb}: {" ".join(str(err).split())}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f'vlm-depth {args.verb}: stopped.', file=sys.stderr)
        return 130


if __name__ == '__main__':
    sys.exit(main())
