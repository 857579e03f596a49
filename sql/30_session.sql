-- Sessions that a gateway opens at a home.

CREATE FUNCTION residency.hello(deployment pg_catalog.int8, region pg_catalog.text,
								version pg_catalog.text, gateway pg_catalog.text, admin pg_catalog.bool)
RETURNS pg_catalog.int4
AS 'MODULE_PATHNAME', 'residency_hello' LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION residency.hello(pg_catalog.int8, pg_catalog.text, pg_catalog.text, pg_catalog.text, pg_catalog.bool)
IS 'first statement of a gateway''s session: raises an error unless this is the region it means';
