-- The wrapper.  Its servers are the other regions; add_region makes them.

CREATE FUNCTION residency.wrapper_handler()
RETURNS pg_catalog.fdw_handler
LANGUAGE c VOLATILE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'residency_wrapper_handler';
COMMENT ON FUNCTION residency.wrapper_handler() IS
'callbacks of foreign data wrapper residency; not to be called';

CREATE FUNCTION residency.wrapper_validator(pg_catalog.text[], pg_catalog.oid)
RETURNS pg_catalog.void
LANGUAGE c VOLATILE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'residency_wrapper_validator';
COMMENT ON FUNCTION residency.wrapper_validator(pg_catalog.text[], pg_catalog.oid) IS
'checks options of servers and user mappings of wrapper residency; not to be called';

CREATE FOREIGN DATA WRAPPER residency
HANDLER residency.wrapper_handler
VALIDATOR residency.wrapper_validator;
COMMENT ON FOREIGN DATA WRAPPER residency IS
'other regions: each server of this wrapper is the region of its name';
