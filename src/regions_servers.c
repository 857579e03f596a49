/*
 * regions_servers.c
 *		From a region to its foreign server, and back; and which server this one is.
 *
 * A server of the wrapper has the name of its region.  Nothing is cached here: the
 * system caches are fast enough.
 */
#include "residency.h"

#include "access/htup_details.h"
#include "access/reloptions.h"
#include "access/xlog.h"
#include "catalog/pg_user_mapping.h"
#include "commands/defrem.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/syscache.h"

#include "regions.h"
#include "regions_internal.h"

PG_FUNCTION_INFO_V1(residency_own_place);

/* Name of the region behind one of our servers, palloc'd. */
char *
residency_server_region(Oid serverid)
{
	return pstrdup(GetForeignServer(serverid)->servername);
}

/*
 * Server of that region, InvalidOid if it is this one.  Throws if no region of
 * that name has joined.
 */
Oid
residency_region_server(const char *region)
{
	const ResidencySelf *self = residency_self();
	ListCell   *lc;

	if (self == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this database is not a region yet"),
				 errhint("Run SELECT residency.init('name-of-this-region') first.")));
	if (strcmp(region, self->region) == 0)
		return InvalidOid;
	foreach(lc, residency_other_regions())
	{
		Oid			serverid;

		if (strcmp(region, lfirst(lc)) != 0)
			continue;
		serverid = get_foreign_server_oid(region, true);
		if (OidIsValid(serverid))
			return serverid;
		ereport(ERROR,
				(errcode(ERRCODE_CONNECTION_DOES_NOT_EXIST),
				 errmsg("the foreign server of region \"%s\" does not exist", region),
				 errhint("Run CREATE SERVER %s FOREIGN DATA WRAPPER residency OPTIONS (host '...', port '...', dbname '...').",
						 quote_identifier(region))));
	}
	ereport(ERROR,
			(errcode(ERRCODE_CONNECTION_DOES_NOT_EXIST),
			 errmsg("region \"%s\" is not known here", region),
			 errhint("SELECT name FROM residency.regions lists the regions; residency.add_region() joins another one.")));
	return InvalidOid;			/* keep compiler quiet */
}

/*
 * Role by which this region logs in at another one, as the PUBLIC mapping of its
 * server says; palloc'd, NULL if there is none.
 */
char *
residency_role_at(Oid serverid)
{
	HeapTuple	tuple = SearchSysCache2(USERMAPPINGUSERSERVER, ObjectIdGetDatum(InvalidOid),
										ObjectIdGetDatum(serverid));
	char	   *role = NULL;
	Datum		options;
	bool		isnull;
	ListCell   *lc;

	if (!HeapTupleIsValid(tuple))
		return NULL;
	options = SysCacheGetAttr(USERMAPPINGUSERSERVER, tuple,
							  Anum_pg_user_mapping_umoptions, &isnull);
	if (!isnull)
	{
		foreach(lc, untransformRelOptions(options))
		{
			DefElem    *option = lfirst_node(DefElem, lc);

			if (strcmp(option->defname, "user") == 0)
				role = pstrdup(defGetString(option));
		}
	}
	ReleaseSysCache(tuple);
	return role;
}

/* what identifies this server and this database; a base backup of the server shares it */
static char *
own_place(void)
{
	return psprintf(UINT64_FORMAT "/%u", GetSystemIdentifier(), MyDatabaseId);
}

/* true if residency.own_place() gives this text here */
bool
residency_is_own_place(const char *place)
{
	return strcmp(place, own_place()) == 0;
}

/* SQL: residency.own_place() */
Datum
residency_own_place(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(cstring_to_text(own_place()));
}
