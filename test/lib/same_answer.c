/*
 * same_answer.c
 *		Runs statements on a plain PostgreSQL server and on a gateway, side by side, and compares
 *		the answers.
 *
 *	same_answer PLAIN GATEWAY ... < script > outcome
 *
 * The arguments are connection strings.  The sessions stay open for the whole script, since a
 * session with a past (plans, remote transactions, prepared statements) is where faults hide.
 *
 * A line of the script is an operation, the number of a gateway from 0, a blank, and SQL:
 *
 *	U0 number	a unit begins; what an earlier one left open is rolled back everywhere
 *	G0 sql		at the gateway only; must succeed
 *	P0 sql		at the plain server only; must succeed
 *	S0 sql		at both; the same columns, rows in any order, command tag, or SQLSTATE
 *	O0 sql		the same, rows in the same order
 *	X0 sql		like S, and it runs even if the rest of its unit is skipped
 *	R0 sql		the same, and both must succeed
 *	E0 sql		EXPLAIN at the gateway; its nodes are counted
 *
 *	          S, O: equal, or the same error            any line but X, R
 *	        +-----------------------------+           +---------------+
 *	        v                             |           v               |
 *	     running --- differs, refused -> skipping until X, R or U -------+
 *
 * A refused statement is one that the gateway alone fails with 0A000: the two sides are no
 * longer in the same state, so the unit's rest says nothing; the reader of the outcome judges
 * the reason.  Floating point numbers are equal within 1e-9; everything else by its text.
 *
 * The outcome: lines "D unit" with the difference on lines that begin with a tab, "R unit message"
 * for a refused statement, "Z milliseconds unit" for a slow one, at the end "N count node" for
 * each kind of plan node, "Q sqlstate count" for errors that were equal, and
 * "T statements errors differences refused".
 */
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <libpq-fe.h>

#define MAX_GATEWAYS 8
#define MAX_KINDS 256
#define MAX_PRINTED 12			/* rows of an answer in a difference */
#define MAX_FUZZY 3000			/* rows that are matched pairwise */
#define TOLERANCE 1e-9
#define SLOW_MS 2000
#define FIRST_USER_OID 16384

/* names with a count: plan nodes, SQLSTATEs */
typedef struct Tally
{
	char		name[64];
	long		count;
} Tally;

/* the rows of an answer, in the order of comparison; each row is an array of strings or NULL */
typedef struct Rows
{
	int			count;
	int			columns;
	bool	   *is_float;
	char	 ***row;
} Rows;

static PGconn *plain;
static PGconn *gateway[MAX_GATEWAYS];
static int	gateways;

static char unit[64] = "none";
static bool skipping;
static long statements,
			equal_errors,
			differences,
			refusals;
static Tally nodes[MAX_KINDS],
			states[MAX_KINDS];

/* ends the program: the servers or the script are broken, so no further outcome means anything */
static void
fail(const char *what, const char *detail)
{
	printf("F %s: unit %s: %s\n", what, unit, detail);
	fflush(stdout);
	exit(2);
}

/* adds one to the name's count */
static void
count_name(Tally *tally, const char *name)
{
	for (int i = 0; i < MAX_KINDS; i++)
	{
		if (tally[i].count == 0)
			snprintf(tally[i].name, sizeof(tally[i].name), "%s", name);
		if (strncmp(tally[i].name, name, sizeof(tally[i].name) - 1) == 0)
		{
			tally[i].count++;
			return;
		}
	}
}

/* milliseconds of a clock that only goes forward */
static double
now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000.0 + t.tv_nsec / 1e6;
}

/* the last result of a statement that was sent; the caller clears it */
static PGresult *
last_result(PGconn *conn)
{
	PGresult   *last = NULL;
	PGresult   *result;

	while ((result = PQgetResult(conn)) != NULL)
	{
		PQclear(last);
		last = result;
		if (PQresultStatus(result) == PGRES_COPY_IN || PQresultStatus(result) == PGRES_COPY_OUT)
			fail("script", "COPY");
	}
	if (PQstatus(conn) != CONNECTION_OK)
		fail("connection lost", PQerrorMessage(conn));
	return last;
}

/* whether the statement failed */
static bool
failed(const PGresult *result)
{
	return PQresultStatus(result) != PGRES_TUPLES_OK && PQresultStatus(result) != PGRES_COMMAND_OK;
}

/* SQLSTATE of a failed statement, else the empty string */
static const char *
sqlstate(const PGresult *result)
{
	const char *state = failed(result) ? PQresultErrorField(result, PG_DIAG_SQLSTATE) : "";

	return state != NULL ? state : "none";
}

/* sends SQL; a connection that does not take it ends the program */
static void
send_query(PGconn *conn, const char *sql)
{
	if (!PQsendQuery(conn, sql))
		fail("cannot send", PQerrorMessage(conn));
}

/* runs SQL on one server, where it must succeed; the caller clears the result */
static PGresult *
must(PGconn *conn, const char *sql)
{
	PGresult   *result;

	send_query(conn, sql);
	result = last_result(conn);
	if (failed(result))
	{
		printf("D %s\n\t%s\n\tmust succeed: %s", unit, sql, PQresultErrorMessage(result));
		differences++;
	}
	return result;
}

/* whether two values are equal; floats within the tolerance, relative to the larger one */
static bool
same_value(const char *a, const char *b, bool is_float)
{
	double		x,
				y;

	if (a == NULL || b == NULL)
		return a == b;
	if (strcmp(a, b) == 0)
		return true;
	if (!is_float)
		return false;
	x = strtod(a, NULL);
	y = strtod(b, NULL);
	return isfinite(x) && isfinite(y) && fabs(x - y) <= TOLERANCE * (1.0 + fabs(x) + fabs(y));
}

/* whether two rows are equal */
static bool
same_row(const Rows *rows, char **a, char **b)
{
	for (int i = 0; i < rows->columns; i++)
	{
		if (!same_value(a[i], b[i], rows->is_float[i]))
			return false;
	}
	return true;
}

/* columns of the rows being sorted, for the comparison function of qsort */
static int	sorted_columns;

/* order of rows for qsort: by text, NULL first; any total order serves */
static int
compare_rows(const void *a, const void *b)
{
	char	  **x = *(char **const *) a;
	char	  **y = *(char **const *) b;

	for (int i = 0; i < sorted_columns; i++)
	{
		int			order = (x[i] != NULL) - (y[i] != NULL);

		if (order == 0 && x[i] != NULL)
			order = strcmp(x[i], y[i]);
		if (order != 0)
			return order;
	}
	return 0;
}

/* takes the rows out of a result, which must outlive them */
static Rows
rows_of(const PGresult *result)
{
	Rows		rows = {.count = PQntuples(result), .columns = PQnfields(result)};

	rows.is_float = calloc(rows.columns + 1, sizeof(bool));
	rows.row = calloc(rows.count + 1, sizeof(char **));
	for (int i = 0; i < rows.columns; i++)
		rows.is_float[i] = PQftype(result, i) == 700 || PQftype(result, i) == 701;
	for (int i = 0; i < rows.count; i++)
	{
		rows.row[i] = calloc(rows.columns + 1, sizeof(char *));
		for (int k = 0; k < rows.columns; k++)
			rows.row[i][k] = PQgetisnull(result, i, k) ? NULL : PQgetvalue(result, i, k);
	}
	return rows;
}

/* frees what rows_of made */
static void
free_rows(Rows *rows)
{
	for (int i = 0; i < rows->count; i++)
		free(rows->row[i]);
	free(rows->row);
	free(rows->is_float);
}

/* whether all rows are equal, one by one */
static bool
same_sequence(const Rows *a, const Rows *b)
{
	for (int i = 0; i < a->count; i++)
	{
		if (!same_row(a, a->row[i], b->row[i]))
			return false;
	}
	return true;
}

/* whether each row of one has an equal one of its own in the other; consumes the rows of b */
static bool
same_multiset(const Rows *a, Rows *b)
{
	if (a->count > MAX_FUZZY)
		return false;
	for (int i = 0; i < a->count; i++)
	{
		int			k = i;

		while (k < b->count && !same_row(a, a->row[i], b->row[k]))
			k++;
		if (k == b->count)
			return false;

		char	  **matched = b->row[k];

		b->row[k] = b->row[i];
		b->row[i] = matched;
	}
	return true;
}

/* whether both answers have the same columns; types of users have other OIDs in each database */
static bool
same_columns(const PGresult *a, const PGresult *b)
{
	if (PQnfields(a) != PQnfields(b))
		return false;
	for (int i = 0; i < PQnfields(a); i++)
	{
		bool		user_types = PQftype(a, i) >= FIRST_USER_OID && PQftype(b, i) >= FIRST_USER_OID;

		if (strcmp(PQfname(a, i), PQfname(b, i)) != 0 ||
			(!user_types && PQftype(a, i) != PQftype(b, i)) || PQfmod(a, i) != PQfmod(b, i))
			return false;
	}
	return true;
}

/* whether two successful answers are the same */
static bool
same_answer(const PGresult *a, const PGresult *b, bool ordered)
{
	Rows		x,
				y;
	bool		same;

	if (PQresultStatus(a) != PQresultStatus(b) ||
		strcmp(PQcmdStatus((PGresult *) a), PQcmdStatus((PGresult *) b)) != 0 ||
		PQntuples(a) != PQntuples(b) || !same_columns(a, b))
		return false;
	x = rows_of(a);
	y = rows_of(b);
	if (!ordered)
	{
		sorted_columns = x.columns;
		qsort(x.row, x.count, sizeof(char **), compare_rows);
		qsort(y.row, y.count, sizeof(char **), compare_rows);
	}
	same = same_sequence(&x, &y) || (!ordered && same_multiset(&x, &y));
	free_rows(&x);
	free_rows(&y);
	return same;
}

/* prints an answer: an error, or how many rows, and those that the other one has not */
static void
print_answer(const char *who, const PGresult *result, const PGresult *other)
{
	Rows		rows,
				others = {0};
	int			printed = 0;

	printf("\t-- %s: ", who);
	if (failed(result))
	{
		const char *message = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);

		printf("%s %s\n", sqlstate(result), message != NULL ? message : "");
		return;
	}
	printf("%s, %d rows\n", PQcmdStatus((PGresult *) result), PQntuples(result));
	rows = rows_of(result);
	if (!failed(other) && same_columns(result, other))
		others = rows_of(other);
	for (int i = 0; i < rows.count && printed < MAX_PRINTED; i++)
	{
		int			k = 0;

		while (k < others.count && (others.row[k] == NULL || !same_row(&rows, rows.row[i], others.row[k])))
			k++;
		if (k < others.count)
		{
			free(others.row[k]);
			others.row[k] = NULL;
			continue;
		}
		putchar('\t');
		for (int k = 0; k < rows.columns; k++)
			printf("%s%s", k > 0 ? " | " : "   ", rows.row[i][k] != NULL ? rows.row[i][k] : "NULL");
		putchar('\n');
		printed++;
	}
	free_rows(&rows);
	free_rows(&others);
}

/* runs a statement on both sides and judges it */
static void
compare(int g, const char *sql, bool ordered)
{
	double		start = now_ms();
	PGresult   *a,
			   *b;
	const char *x,
			   *y;

	send_query(plain, sql);
	send_query(gateway[g], sql);
	a = last_result(plain);
	b = last_result(gateway[g]);
	x = sqlstate(a);
	y = sqlstate(b);
	statements++;
	if (now_ms() - start > SLOW_MS)
		printf("Z %.0f %s\n", now_ms() - start, unit);

	if (failed(a) && strcmp(x, y) == 0)
	{
		equal_errors++;
		count_name(states, x);
	}
	else if (strcmp(y, "0A000") == 0)
	{
		printf("R %s %s\n", unit, PQresultErrorField(b, PG_DIAG_MESSAGE_PRIMARY));
		refusals++;
		skipping = true;
	}
	else if (failed(a) || failed(b) || !same_answer(a, b, ordered))
	{
		printf("D %s\n\tgateway %d%s\n\t%s\n", unit, g, ordered ? ", in order" : "", sql);
		print_answer("plain", a, b);
		print_answer("regions", b, a);
		fflush(stdout);
		differences++;
		skipping = true;
	}
	PQclear(a);
	PQclear(b);
}

/* counts the kinds of nodes of a plan in text format: the words of a line before its object */
static void
count_nodes(int g, const char *sql)
{
	static const char *const ends[] = {" on ", " using ", "  (", NULL};
	PGresult   *result;
	char	   *explain = malloc(strlen(sql) + 64);

	sprintf(explain, "EXPLAIN (COSTS OFF) %s", sql);
	send_query(gateway[g], explain);
	result = last_result(gateway[g]);
	for (int i = 0; !failed(result) && i < PQntuples(result); i++)
	{
		const char *line = PQgetvalue(result, i, 0);
		const char *arrow = strstr(line, "->  ");
		char		name[64];

		if (arrow != NULL)
			line = arrow + 4;
		else if (i > 0)
			continue;
		snprintf(name, sizeof(name), "%s", line);
		for (const char *const *end = ends; *end != NULL; end++)
		{
			char	   *cut = strstr(name, *end);

			if (cut != NULL)
				*cut = '\0';
		}
		count_name(nodes, name);
	}
	PQclear(result);
	free(explain);
}

/* rolls back what a unit left open, on every server */
static void
end_unit(void)
{
	for (int i = -1; i < gateways; i++)
	{
		PGconn	   *conn = i < 0 ? plain : gateway[i];

		if (PQtransactionStatus(conn) != PQTRANS_IDLE)
			PQclear(must(conn, "ROLLBACK"));
	}
	skipping = false;
}

/* does one line of the script */
static void
perform(char op, int g, const char *sql)
{
	if (op == 'U')
	{
		end_unit();
		snprintf(unit, sizeof(unit), "%s", sql);
		return;
	}
	if ((op == 'X' || op == 'R') && skipping)
		end_unit();
	if (skipping)
		return;
	switch (op)
	{
		case 'G':
			PQclear(must(gateway[g], sql));
			break;
		case 'P':
			PQclear(must(plain, sql));
			break;
		case 'S':
		case 'X':
			compare(g, sql, false);
			break;
		case 'O':
			compare(g, sql, true);
			break;
		case 'R':
			PQclear(must(plain, sql));
			PQclear(must(gateway[g], sql));
			break;
		case 'E':
			count_nodes(g, sql);
			break;
		default:
			fail("script", "unknown operation");
	}
}

/* takes a server's notices, which are of no interest here */
static void
ignore_notice(void *arg, const char *message)
{
	(void) arg;
	(void) message;
}

/* connects */
static PGconn *
connect_to(const char *conninfo)
{
	PGconn	   *conn = PQconnectdb(conninfo);

	if (PQstatus(conn) != CONNECTION_OK)
		fail("cannot connect", PQerrorMessage(conn));
	PQsetNoticeProcessor(conn, ignore_notice, NULL);
	return conn;
}

/* reads the script, writes the outcome; exit code 2 if the script could not be run to its end */
int
main(int argc, char **argv)
{
	char	   *line = NULL;
	size_t		size = 0;
	ssize_t		length;

	if (argc < 3 || argc > 2 + MAX_GATEWAYS)
		fail("usage", "same_answer PLAIN GATEWAY ...");
	plain = connect_to(argv[1]);
	while (gateways < argc - 2)
	{
		gateway[gateways] = connect_to(argv[2 + gateways]);
		gateways++;
	}
	while ((length = getline(&line, &size, stdin)) > 0)
	{
		if (line[length - 1] == '\n')
			line[length - 1] = '\0';
		if (line[0] == '\0')
			continue;
		if (strlen(line) < 3 || line[1] < '0' || line[1] >= '0' + gateways || line[2] != ' ')
			fail("script", line);
		perform(line[0], line[1] - '0', line + 3);
	}
	end_unit();
	for (int i = 0; i < MAX_KINDS; i++)
	{
		if (nodes[i].count > 0)
			printf("N %ld %s\n", nodes[i].count, nodes[i].name);
		if (states[i].count > 0)
			printf("Q %s %ld\n", states[i].name, states[i].count);
	}
	printf("T %ld %ld %ld %ld\n", statements, equal_errors, differences, refusals);
	free(line);
	return 0;
}
