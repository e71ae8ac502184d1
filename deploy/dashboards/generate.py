"""Writes what is made from this folder: `python -m deploy.dashboards.generate`; `--check` only compares.

`--runbooks URL` has the alerts link to where the team reads docs/runbooks.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from deploy.dashboards.alerts import RUNBOOKS, rules
from deploy.dashboards.fleet import FLEET
from deploy.dashboards.limiter import LIMITER
from deploy.dashboards.model import Dashboard
from deploy.dashboards.models import MODELS
from deploy.dashboards.quotas import QUOTAS

DASHBOARDS: tuple[Dashboard, ...] = (FLEET, MODELS, QUOTAS, LIMITER)
DEPLOY = Path(__file__).resolve().parent.parent
_NOTE = "# Made by `python -m deploy.dashboards.generate` from deploy/dashboards; do not edit.\n"


def files(runbooks: str = RUNBOOKS) -> dict[Path, str]:
    """Each made file and its text."""
    out = {
        DEPLOY / "grafana" / "dashboards" / f"{one.uid}.json": json.dumps(one.document(), indent=1, ensure_ascii=False) + "\n"
        for one in DASHBOARDS
    }
    text = yaml.safe_dump(rules(runbooks), sort_keys=False, width=128, allow_unicode=True)
    out[DEPLOY / "prometheus" / "rules.yml"] = _NOTE + text
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Write, or name what is out of date."""
    parser = argparse.ArgumentParser(prog="python -m deploy.dashboards.generate")
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 when a file is out of date")
    parser.add_argument("--runbooks", default=RUNBOOKS, metavar="URL", help="what the alerts' links begin with")
    chosen = parser.parse_args(arguments)
    stale = {path: text for path, text in files(chosen.runbooks).items() if not path.exists() or path.read_text() != text}
    for path, text in stale.items():
        if chosen.check:
            print(f"out of date: {path.relative_to(DEPLOY.parent)}")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return 1 if chosen.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
