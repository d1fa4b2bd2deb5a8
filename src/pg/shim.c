/*
 * The only C of Postgres-R: one thin function a call that can raise an error,
 * so that no longjmp ever crosses a Rust frame.  See README.md in this folder.
 */
#include "shim.h"

#include <stdlib.h>

#include "miscadmin.h"
#include "utils/injection_point.h"

pg_noreturn extern void pgr_shim_throw(const char *sqlstate, const char *message,
									   const char *detail, const char *hint);
pg_noreturn extern void pgr_shim_rethrow(ErrorData *edata);
extern int	pgr_shim_log(int level, const char *message, ErrorData **edata);
extern int	pgr_shim_check_interrupts(ErrorData **edata);
extern int	pgr_shim_stop_point(const char *name, ErrorData **edata);
extern int	pgr_shim_is_attached(const char *name, bool *out, ErrorData **edata);
extern int	pgr_shim_call(void (*function) (void *), void *argument, ErrorData **edata);

static char *
adopt(const char *text)
{
	char	   *copy;

	if (text == NULL)
		return NULL;
	copy = pstrdup(text);
	free(unconstify(char *, text));
	return copy;
}

/*
 * Raises an error that Rust made.  The strings were allocated with malloc and
 * are freed here, after everything of Rust is gone from the stack.
 */
void
pgr_shim_throw(const char *sqlstate, const char *message, const char *detail,
			   const char *hint)
{
	int			code = MAKE_SQLSTATE(sqlstate[0], sqlstate[1], sqlstate[2],
									 sqlstate[3], sqlstate[4]);

	/* No allocation here in the current context, and nobody to free anything. */
	if (CritSectionCount > 0)
		ereport(PANIC,
				errcode(code),
				errmsg_internal("%s", message),
				detail ? errdetail_internal("%s", detail) : 0,
				hint ? errhint("%s", hint) : 0);
	free(unconstify(char *, sqlstate));
	message = adopt(message);
	detail = adopt(detail);
	hint = adopt(hint);
	ereport(ERROR,
			errcode(code),
			errmsg_internal("%s", message),
			detail ? errdetail_internal("%s", detail) : 0,
			hint ? errhint("%s", hint) : 0);
	pg_unreachable();
}

/* Raises an error of PostgreSQL's again that a guard has caught. */
void
pgr_shim_rethrow(ErrorData *edata)
{
	ReThrowError(edata);
	pg_unreachable();
}

/*
 * Logs below ERROR.  Guarded, since an error context callback may raise.  Not a
 * place for interrupts, which errfinish() would serve: the caller may be where
 * nothing may end the transaction or the process.
 */
int
pgr_shim_log(int level, const char *message, ErrorData **edata)
{
	Assert(level < ERROR);
	/* An error resets what is held */
	PGR_GUARD(edata,
			  HOLD_INTERRUPTS();
			  ereport(level, errmsg_internal("%s", message));
			  RESUME_INTERRUPTS());
}

int
pgr_shim_check_interrupts(ErrorData **edata)
{
	PGR_GUARD(edata, CHECK_FOR_INTERRUPTS());
}

/*
 * Runs a function that is itself C all the way down, or whose Rust frames own
 * nothing that must be dropped.
 */
int
pgr_shim_call(void (*function) (void *), void *argument, ErrorData **edata)
{
	PGR_GUARD(edata, function(argument));
}

/* A named stop point of the tests; nothing in a server built without them. */
int
pgr_shim_stop_point(const char *name, ErrorData **edata)
{
	PGR_GUARD(edata, INJECTION_POINT(name, NULL));
}

/* Has a test attached something to this injection point? */
int
pgr_shim_is_attached(const char *name, bool *out, ErrorData **edata)
{
	PGR_GUARD(edata, *out = IS_INJECTION_POINT_ATTACHED(name));
}
