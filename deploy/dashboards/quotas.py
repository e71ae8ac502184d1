"""The dashboard *Keys and quotas*: who uses what, and who is near a limit. By name from the ledger, never from labels.

Limits of teams are those of the database (`owners`) and of the configuration file (`declared_teams`, written for this).
"""

from __future__ import annotations

from deploy.dashboards.fleet import R
from deploy.dashboards.model import Dashboard, Panel, Query, Row

#: Rows of the time that the dashboard shows.
SHOWN = "state = 'final' AND admitted_us BETWEEN $__unixEpochFrom()::bigint * 1000000 AND $__unixEpochTo()::bigint * 1000000"
BUCKET = "$__unixEpochGroupAlias(admitted_us/1000000, $__interval)"
TEAM = "COALESCE(NULLIF(team_id, ''), '(no team)')"
USD = "sum(cost_nusd) / 1e9"
#: How much of a limit is taken at which a team is listed, as in gateway.limits.signals.
NEAR = 0.8

#: Every limit of a team and what was used of it since its period or window began.
_USE = """
WITH stated AS (
  SELECT o.name, COALESCE(NULLIF(o.zone, ''), 'UTC') AS zone, one->>'unit' AS unit, (one->>'limit')::numeric AS most,
         one->>'period' AS period, (one->>'window_ms')::bigint AS window_ms, COALESCE(one->>'model', '') AS model
  FROM (SELECT name, zone, limits FROM owners WHERE kind = 'team' UNION ALL SELECT name, zone, limits FROM declared_teams) o
    CROSS JOIN LATERAL jsonb_array_elements(o.limits::jsonb) AS one
  WHERE one->>'unit' <> 'slots' AND NOT COALESCE((one->>'shadow')::boolean, false)
), since AS (
  SELECT stated.*, 1000000 * CASE WHEN period IS NULL THEN extract(epoch FROM now()) - window_ms / 1000.0
    ELSE extract(epoch FROM date_trunc(period, now() AT TIME ZONE zone) AT TIME ZONE zone) END AS since_us
  FROM stated
), taken AS (
  SELECT name, unit, most, COALESCE(period, (window_ms / 1000)::text || ' s') AS per, model, (
    SELECT COALESCE(sum(CASE unit WHEN 'requests' THEN 1 WHEN 'input_tokens' THEN input_tokens
      WHEN 'output_tokens' THEN output_tokens WHEN 'nusd' THEN cost_nusd ELSE input_tokens + output_tokens END), 0)
    FROM ledger WHERE team_id = name AND admitted_us >= since_us AND (since.model = '' OR ledger.model = since.model)
  ) AS used
  FROM since
)
SELECT name AS "team", CASE unit WHEN 'nusd' THEN 'USD' ELSE unit END AS "unit", per, NULLIF(model, '') AS "model",
       used / CASE unit WHEN 'nusd' THEN 1e9 ELSE 1 END AS "used", most / CASE unit WHEN 'nusd' THEN 1e9 ELSE 1 END AS "limit",
       round(used / NULLIF(most, 0), 4) AS "part"
FROM taken{where} ORDER BY "part" DESC NULLS LAST LIMIT 50
""".strip()


def _sql(text: str) -> tuple[Query, ...]:
    return (Query(text, sql=True),)


def _series(value: str) -> tuple[Query, ...]:
    """A figure of each team over time."""
    return _sql(f"SELECT {BUCKET}, {TEAM} AS metric, {value} AS value FROM ledger WHERE {SHOWN} GROUP BY 1, 2 ORDER BY 1")


TEAMS = Row(
    "Teams",
    (
        Panel("Requests by team", "Settled requests of each interval.", _series("count(*)"), stacked=True),
        Panel("Tokens by team", "Prompt and generated tokens.", _series("sum(input_tokens + output_tokens)"), stacked=True),
        Panel("Spend by team", "USD by the price lists.", _series(USD), "currencyUSD", stacked=True),
        Panel(
            "Use against limit",
            "Each limit of a team, and what was used of it in its present period or window.",
            _sql(_USE.format(where="")),
            kind="table",
            width=16,
        ),
        Panel(
            "Near a limit",
            f"Teams that have used {NEAR:.0%} of a limit or more.",
            _sql(_USE.format(where=f" WHERE used >= {NEAR} * most")),
            kind="table",
        ),
    ),
)
KEYS = Row(
    "Keys",
    (
        Panel(
            "Keys by spend",
            "The twenty keys that cost most.",
            _sql(
                f'SELECT COALESCE(k.name, l.key_id) AS "key", {TEAM} AS "team", count(*) AS "requests",'
                f' sum(l.input_tokens) AS "prompt tokens", sum(l.output_tokens) AS "generated tokens", {USD} AS "USD"'
                f" FROM ledger l LEFT JOIN keys k ON k.id = l.key_id WHERE {SHOWN}"
                ' GROUP BY 1, 2 ORDER BY "USD" DESC, "requests" DESC LIMIT 20'
            ),
            kind="table",
            width=12,
        ),
        Panel(
            "Keys by failures",
            "The twenty keys whose requests failed or were cut most.",
            _sql(
                f'SELECT COALESCE(k.name, l.key_id) AS "key", {TEAM} AS "team", l.outcome AS "outcome", count(*) AS "requests"'
                f" FROM ledger l LEFT JOIN keys k ON k.id = l.key_id WHERE {SHOWN} AND l.outcome <> 'ok'"
                ' GROUP BY 1, 2, 3 ORDER BY "requests" DESC LIMIT 20'
            ),
            kind="table",
            width=12,
        ),
        Panel(
            "Spend by model",
            "USD of each model in the time shown.",
            _sql(
                f'SELECT model AS "model", {USD} AS "USD", count(*) AS "requests" FROM ledger WHERE {SHOWN}'
                " GROUP BY 1 ORDER BY 2 DESC"
            ),
            kind="table",
            width=12,
        ),
        Panel(
            "Users by spend",
            "The twenty users who cost most.",
            _sql(
                'SELECT COALESCE(NULLIF("user", \'\'), \'(no user)\') AS "user", count(*) AS "requests",'
                f' {USD} AS "USD" FROM ledger WHERE {SHOWN} GROUP BY 1 ORDER BY 3 DESC, 2 DESC LIMIT 20'
            ),
            kind="table",
            width=12,
        ),
    ),
)
LIMITS = Row(
    "Limits",
    (
        Panel(
            "429s by limit",
            "Admissions refused, a second, by whose limit and which unit.",
            (Query(f"sum by (scope, unit) (rate(switchyard_limit_refusals_total[{R}]))", "{{scope}} {{unit}}"),),
            "reqps",
            stacked=True,
        ),
        Panel(
            "Near a limit",
            "Admissions that left a fifth of a limit or less, a second.",
            (Query(f"sum by (scope, unit) (rate(switchyard_limit_near_total[{R}]))", "{{scope}} {{unit}}"),),
            "reqps",
        ),
        Panel(
            "Shadow limits",
            "Admissions that a shadow limit would have refused, a second.",
            (Query(f"sum by (scope, unit) (rate(switchyard_limit_shadow_refusals_total[{R}]))", "{{scope}} {{unit}}"),),
            "reqps",
        ),
    ),
)
QUOTAS = Dashboard(
    "switchyard-quotas",
    "Switchyard: keys and quotas",
    "Use and spend by team, key and user, from the ledger; refusals by limit, from metrics.",
    (TEAMS, KEYS, LIMITS),
)
