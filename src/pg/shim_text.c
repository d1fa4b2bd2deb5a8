/* Values of type text, and an error to catch for the guards' own test. */
#include "shim.h"

#include "fmgr.h"
#include "utils/builtins.h"

extern int	pgr_shim_text(const char *text, Datum *out, ErrorData **edata);
extern int	pgr_shim_text_argument(FunctionCallInfo fcinfo, int number,
								   const char **out, ErrorData **edata);
extern int	pgr_shim_test_raise(ErrorData **edata);

int
pgr_shim_text(const char *text, Datum *out, ErrorData **edata)
{
	PGR_GUARD(edata, *out = CStringGetTextDatum(text));
}

int
pgr_shim_text_argument(FunctionCallInfo fcinfo, int number, const char **out,
					   ErrorData **edata)
{
	PGR_GUARD(edata, *out = text_to_cstring(PG_GETARG_TEXT_PP(number)));
}

int
pgr_shim_test_raise(ErrorData **edata)
{
	PGR_GUARD(edata,
			  ereport(ERROR,
					  errcode(ERRCODE_DIVISION_BY_ZERO),
					  errmsg("planted division by zero"),
					  errdetail("planted detail of the server")));
}
