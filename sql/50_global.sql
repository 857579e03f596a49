-- Global tables: the trigger that captures changes, and the functions with which
-- another region applies them.  residency.make_global() creates the triggers.

CREATE FUNCTION residency.capture() RETURNS trigger
    LANGUAGE c VOLATILE PARALLEL UNSAFE
    AS 'MODULE_PATHNAME', 'residency_capture';
COMMENT ON FUNCTION residency.capture() IS
    'trigger of global tables: notes what was changed, to be sent to the other regions';

CREATE FUNCTION residency.apply(tables text[], regions text[], changes text, last boolean, left_out text[], deferred boolean)
    RETURNS void
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
    AS 'MODULE_PATHNAME', 'residency_apply';
COMMENT ON FUNCTION residency.apply(text[], text[], text, boolean, text[], boolean) IS
    'applies changes of global tables that another region sends; not for users';
REVOKE ALL ON FUNCTION residency.apply(text[], text[], text, boolean, text[], boolean) FROM PUBLIC;

CREATE FUNCTION residency.apply_truncate(tables text[])
    RETURNS void
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
    AS 'MODULE_PATHNAME', 'residency_apply_truncate';
COMMENT ON FUNCTION residency.apply_truncate(text[]) IS
    'empties global tables that were truncated in another region; not for users';
REVOKE ALL ON FUNCTION residency.apply_truncate(text[]) FROM PUBLIC;
