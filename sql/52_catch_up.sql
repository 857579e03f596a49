--
-- Catch-up: what was noted is shipped.
--

CREATE FUNCTION residency.ship(region pg_catalog.text, final pg_catalog.bool DEFAULT false)
	RETURNS pg_catalog.int4
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'residency_ship';
COMMENT ON FUNCTION residency.ship(pg_catalog.text, pg_catalog.bool)
	IS 'ships one batch of what was noted about a region; the number of rows dealt with';
REVOKE ALL ON FUNCTION residency.ship(pg_catalog.text, pg_catalog.bool) FROM PUBLIC;

CREATE FUNCTION residency.apply_shipped(tables pg_catalog.text[], shipper pg_catalog.text,
		changes pg_catalog.text, final pg_catalog.bool,
		OUT number pg_catalog.int4, OUT outcome pg_catalog.text, OUT kind pg_catalog.text,
		OUT constraint_name pg_catalog.text, OUT content pg_catalog.text)
	RETURNS SETOF pg_catalog.record
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'residency_apply_shipped';
COMMENT ON FUNCTION residency.apply_shipped(pg_catalog.text[], pg_catalog.text, pg_catalog.text, pg_catalog.bool)
	IS 'for gateways: takes rows that this region has missed; what became of those that were not simply written';
REVOKE ALL ON FUNCTION residency.apply_shipped(pg_catalog.text[], pg_catalog.text, pg_catalog.text, pg_catalog.bool)
	FROM PUBLIC;
