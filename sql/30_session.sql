-- Sessions that a gateway opens at a home.

CREATE FUNCTION residency.hello(deployment pg_catalog.int8, region pg_catalog.text,
								version pg_catalog.text, gateway pg_catalog.text, admin pg_catalog.bool,
								instance pg_catalog.text DEFAULT '', incarnation pg_catalog.int8 DEFAULT 0)
RETURNS pg_catalog.int4
AS 'MODULE_PATHNAME', 'residency_hello' LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION residency.hello(pg_catalog.int8, pg_catalog.text, pg_catalog.text, pg_catalog.text, pg_catalog.bool, pg_catalog.text, pg_catalog.int8)
IS 'first statement of a gateway''s session: raises an error unless this is the region it means';

CREATE FUNCTION residency.homed_here(schema pg_catalog.text, name pg_catalog.text, VARIADIC key pg_catalog.text[])
RETURNS pg_catalog.bool
AS 'MODULE_PATHNAME', 'residency_homed_here' LANGUAGE C STRICT STABLE PARALLEL RESTRICTED;
COMMENT ON FUNCTION residency.homed_here(pg_catalog.text, pg_catalog.text, pg_catalog.text[])
IS 'for gateways: does this region''s directory call it the home of a key of a resident table?';
