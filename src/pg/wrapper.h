/* Headers that bindgen reads. */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"
#include "utils/elog.h"
#include "utils/memutils.h"
#include "storage/lockdefs.h"
#include "storage/proc.h"
#include "tcop/utility.h"
#include "utils/wait_event.h"
#include "utils/rel.h"
