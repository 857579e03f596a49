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

CREATE FUNCTION residency.forget_shipped(tables pg_catalog.text[], keys pg_catalog.text[])
	RETURNS pg_catalog.void
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'residency_forget_shipped';
COMMENT ON FUNCTION residency.forget_shipped(pg_catalog.text[], pg_catalog.text[])
	IS 'for gateways: rows that this region could not take have got another home, which ships them';
REVOKE ALL ON FUNCTION residency.forget_shipped(pg_catalog.text[], pg_catalog.text[]) FROM PUBLIC;

CREATE FUNCTION residency.catch_up_progress(OUT region pg_catalog.name, OUT shipped pg_catalog.int8,
		OUT since pg_catalog.timestamptz, OUT rate pg_catalog.float8,
		OUT last_batch pg_catalog.timestamptz, OUT last_error pg_catalog.text)
	RETURNS SETOF pg_catalog.record
	LANGUAGE c VOLATILE CALLED ON NULL INPUT PARALLEL SAFE AS 'MODULE_PATHNAME', 'residency_catch_up_progress';
COMMENT ON FUNCTION residency.catch_up_progress()
	IS 'what the catch-up worker of this database has shipped since the server started';

CREATE VIEW residency.catch_up AS
	SELECT r.name AS region, s.state, coalesce(b.notes, 0) AS notes, coalesce(p.shipped, 0) AS shipped,
		   p.rate, p.since, p.last_batch, p.last_error
	FROM residency.region r
	JOIN residency.self own ON r.name OPERATOR(pg_catalog.<>) own.region
	LEFT JOIN residency.region_states() s ON s.region OPERATOR(pg_catalog.=) r.name
	LEFT JOIN (SELECT region, pg_catalog.count(*) AS notes FROM residency.backlog GROUP BY region) b
		ON b.region OPERATOR(pg_catalog.=) r.name
	LEFT JOIN residency.catch_up_progress() p ON p.region OPERATOR(pg_catalog.=) r.name;
COMMENT ON VIEW residency.catch_up
	IS 'rows homed here that other regions have not got yet, and how fast they are shipped';
GRANT SELECT ON residency.catch_up TO PUBLIC;
