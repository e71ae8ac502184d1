\getenv password GRAFANA_PASSWORD
SELECT 'CREATE ROLE grafana LOGIN' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'grafana') \gexec
ALTER ROLE grafana PASSWORD :'password' NOSUPERUSER NOCREATEDB NOCREATEROLE CONNECTION LIMIT 10;
ALTER ROLE grafana SET default_transaction_read_only = on;
ALTER ROLE grafana SET statement_timeout = '30s';
GRANT USAGE ON SCHEMA public TO grafana;
GRANT SELECT ON ledger, owners, declared_teams TO grafana;
GRANT SELECT (id, name, team, "user", models, limits, scopes, created_us, expires_us, revoked_us, suspended_us)
  ON keys TO grafana;
