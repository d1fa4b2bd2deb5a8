--- Statements, each run on every kind of table of tables.sql, in this order. {1} to {9} are ids of this
--- statement's own: rows {1} to {5} are there, {6} to {9} are not.
--
--- statement: NAME    begins one; what follows is run in one session, statement by statement
--- each: NAME         each of the statements that follow is one by itself
--- before             definitions that it needs follow, made before replication starts; {f} is a name for one
--- run                its statements follow
--- only: KINDS        the kinds of tables on which it is run
--- final              runs when all the others have run
--- A COPY FROM STDIN is followed by its rows and a line \.

-- statement: insert
INSERT INTO {t} (id, a, b) VALUES ({6}, 1, 'new') RETURNING id, a, b;

-- statement: insert of many rows
INSERT INTO {t} (id, a, b) VALUES ({6}, 1, 'x'), ({7}, 2, ''), ({8}, 3, NULL), ({9}, NULL, 'y');

-- statement: insert with nulls
INSERT INTO {t} (id) VALUES ({6});

-- statement: insert, a transaction's number
INSERT INTO {t} (id, a, b) SELECT {6}, 1, (count(*) > 0)::text FROM pg_locks WHERE locktype = 'virtualxid';

-- statement: insert select
INSERT INTO {t} (id, a, b) SELECT id + 5, a, b FROM {t} WHERE id BETWEEN {1} AND {4} ORDER BY id;

-- statement: insert that violates a constraint
INSERT INTO {t} (id, a, b) VALUES ({6}, 1, 'x'), ({1}, 5000, NULL);

-- statement: update
UPDATE {t} SET a = a + 1 WHERE id IN ({1}, {2}) RETURNING id, a, b;

-- statement: update of text
UPDATE {t} SET b = upper(b) || 'x' WHERE id BETWEEN {1} AND {3};

-- statement: update to null and back
UPDATE {t} SET b = NULL WHERE id BETWEEN {1} AND {3};
UPDATE {t} SET b = 'again', a = 2 WHERE id BETWEEN {2} AND {3};

-- statement: update that changes nothing
UPDATE {t} SET a = a, b = b WHERE id BETWEEN {1} AND {5};

-- statement: update of no row
UPDATE {t} SET a = 1 WHERE id = {9};

-- statement: update of the id
UPDATE {t} SET id = {6} WHERE id = {1};

-- statement: update, ids change places
UPDATE {t} SET id = {1} + {2} - id WHERE id IN ({1}, {2});

-- statement: update from
UPDATE {t} SET b = v.b || {t}.a FROM (VALUES ({1}, 'p'), ({2}, 'q')) v (id, b) WHERE {t}.id = v.id;

-- statement: update twice in a transaction
BEGIN;
UPDATE {t} SET a = a + 1 WHERE id = {1};
UPDATE {t} SET a = a + 1, b = 'twice' WHERE id = {1};
DELETE FROM {t} WHERE id = {2};
INSERT INTO {t} (id, a, b) VALUES ({2}, 0, 'reborn');
UPDATE {t} SET b = 'reborn twice' WHERE id = {2};
COMMIT;

-- statement: delete
DELETE FROM {t} WHERE id IN ({1}, {2}) RETURNING id, a, b;

-- statement: delete using
DELETE FROM {t} USING (VALUES ({1}), ({3})) v (id) WHERE {t}.id = v.id;

-- statement: merge, all arms
MERGE INTO {t} USING (VALUES ({1}, 'update'), ({2}, 'delete'), ({3}, 'nothing'), ({6}, 'insert')) s (i, act) ON id = i
    WHEN MATCHED AND act = 'update' THEN UPDATE SET a = a + 1, b = b || act
    WHEN MATCHED AND act = 'delete' THEN DELETE
    WHEN MATCHED THEN DO NOTHING
    WHEN NOT MATCHED BY TARGET THEN INSERT (id, a, b) VALUES (i, 1, act)
    WHEN NOT MATCHED BY SOURCE AND id = {4} THEN UPDATE SET b = 'not in the source'
    RETURNING merge_action(), id, a, b;

-- statement: on conflict do nothing
INSERT INTO {t} (id, a, b) VALUES ({1}, 1, 'x'), ({6}, 1, 'y') ON CONFLICT DO NOTHING;

-- statement: on conflict do update
INSERT INTO {t} (id, a, b) VALUES ({1}, {1} % 5, 'b{1}'), ({6}, 1, 'y') ON CONFLICT ({key}) DO UPDATE SET b = excluded.b || ' met' RETURNING id, b;

-- statement: copy text
COPY {t} (id, a, b) FROM STDIN;
{6}	1	text
{7}	\N	tab\tnewline\n
{8}	2	\N
\.

-- statement: copy csv
COPY {t} (id, a, b) FROM STDIN (FORMAT csv);
{6},1,"quoted ""csv"""
{7},,
\.

-- statement: copy binary
COPY (SELECT i, 1, 'binary ' || i FROM generate_series({6}, {9}) i) TO '{file}' (FORMAT binary);
COPY {t} (id, a, b) FROM '{file}' (FORMAT binary);

-- statement: copy freeze
COPY {t} (id, a, b) FROM STDIN (FREEZE);
{6}	1	cold
\.

-- statement: copy of many rows
COPY (SELECT {6}, 1, repeat('w', i % 3000) FROM generate_series(1, 1) i) TO '{file}';
COPY {t} (id, a, b) FROM '{file}' WHERE id = {6};

-- statement: copy on error ignore
COPY {t} (id, a, b) FROM STDIN (ON_ERROR ignore, LOG_VERBOSITY silent);
{6}	1	good
{7}	x	bad
{8}	2	good
\.

-- statement: writable ctes
WITH gone AS (DELETE FROM {t} WHERE id = {1} RETURNING id, a, b),
     changed AS (UPDATE {t} SET b = b || '~' WHERE id = {2} RETURNING id, b)
INSERT INTO {t} (id, a, b) SELECT gone.id + 5, gone.a, changed.b FROM gone, changed;

-- statement: cursor, where current of
BEGIN;
DECLARE c CURSOR FOR SELECT id, a, b FROM {t} WHERE id BETWEEN {1} AND {3} ORDER BY id FOR UPDATE;
FETCH c;
UPDATE {t} SET b = 'current' WHERE CURRENT OF c;
FETCH c;
DELETE FROM {t} WHERE CURRENT OF c;
COMMIT;

-- statement: prepared statements
PREPARE p (int4, text) AS UPDATE {t} SET b = $2 WHERE id = $1;
EXECUTE p ({1}, 'one');
EXECUTE p ({2}, 'two');
DEALLOCATE p;

-- statement: savepoints
BEGIN;
UPDATE {t} SET b = 'kept' WHERE id = {1};
SAVEPOINT s;
UPDATE {t} SET b = 'not kept' WHERE id IN ({1}, {2});
INSERT INTO {t} (id, a, b) VALUES ({6}, 1, 'not kept');
ROLLBACK TO s;
INSERT INTO {t} (id, a, b) VALUES ({7}, 1, 'kept');
RELEASE s;
COMMIT;

-- statement: rollback
BEGIN;
INSERT INTO {t} (id, a, b) VALUES ({6}, 1, 'no');
ROLLBACK;

-- statement: do
DO $$ BEGIN
    INSERT INTO {t} (id, a, b) VALUES ({6}, 1, 'do');
    BEGIN
        INSERT INTO {t} (id, a, b) VALUES ({7}, 1, 'undone');
        RAISE division_by_zero;
    EXCEPTION WHEN division_by_zero THEN UPDATE {t} SET b = 'handled' WHERE id = {1};
    END;
    FOR i IN {8}..{9} LOOP INSERT INTO {t} (id, a, b) VALUES (i, 1, 'loop'); END LOOP;
END $$;

-- statement: function in sql
-- before
CREATE FUNCTION {f}(int4) RETURNS SETOF int4 LANGUAGE sql AS $$ INSERT INTO {t} (id, a, b) VALUES ($1, 1, 'sql'); UPDATE {t} SET b = 'sql' WHERE id = $1 - 5 RETURNING id $$;
GRANT EXECUTE ON FUNCTION {f}(int4) TO limited;
-- run
SELECT {f}({6});

-- statement: function in plpgsql
-- before
CREATE FUNCTION {f}(i int4) RETURNS int4 LANGUAGE plpgsql SECURITY DEFINER AS $$ DECLARE n int4; BEGIN DELETE FROM {t} WHERE id = i; EXECUTE format('UPDATE {t} SET b = %L WHERE id = $1', 'plpgsql') USING i + 1; GET DIAGNOSTICS n = ROW_COUNT; RETURN n; END $$;
-- run
SELECT {f}({1});

-- statement: procedure with commit inside
-- before
CREATE PROCEDURE {f}(i int4) LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO {t} (id, a, b) VALUES (i, 1, 'first'); COMMIT;
    INSERT INTO {t} (id, a, b) VALUES (i + 1, 1, 'undone'); ROLLBACK;
    INSERT INTO {t} (id, a, b) VALUES (i + 2, 1, 'last'); COMMIT AND CHAIN; END $$;
-- run
CALL {f}({6});

-- statement: explain analyze
EXPLAIN (ANALYZE, COSTS off, TIMING off, SUMMARY off, BUFFERS off) INSERT INTO {t} (id, a, b) VALUES ({6}, 1, 'explained');

-- statement: select for update
BEGIN;
SELECT id FROM {t} WHERE id BETWEEN {1} AND {2} ORDER BY id FOR UPDATE;
SELECT id FROM {t} WHERE id = {3} FOR KEY SHARE SKIP LOCKED;
UPDATE {t} SET a = a + 1 WHERE id = {1};
COMMIT;

-- statement: lock table
BEGIN;
LOCK TABLE {t} IN SHARE ROW EXCLUSIVE MODE;
INSERT INTO {t} (id, a, b) VALUES ({6}, 1, 'locked');
COMMIT;

-- statement: set constraints
BEGIN;
SET CONSTRAINTS ALL DEFERRED;
UPDATE {t} SET id = {6} WHERE id = {1};
UPDATE {t} SET id = {1} WHERE id = {6};
SET CONSTRAINTS ALL IMMEDIATE;
COMMIT;

-- statement: serializable
BEGIN ISOLATION LEVEL SERIALIZABLE;
INSERT INTO {t} (id, a, b) SELECT {6}, count(*), 'counted' FROM {t} WHERE id BETWEEN {1} AND {5};
UPDATE {t} SET a = 4 WHERE id = {1};
COMMIT;

-- statement: replica session
SET session_replication_role = replica;
INSERT INTO {t} (id, a, b) VALUES ({6}, 1, 'replica');
UPDATE {t} SET b = 'replica' WHERE id = {1};
RESET session_replication_role;

-- statement: wide insert
INSERT INTO {t} (id, a, b) SELECT {6}, 1, string_agg(md5(i::text), '') FROM generate_series(1, 300) i;

-- statement: wide update, then of another column, then of a part
UPDATE {t} SET b = (SELECT string_agg(md5(i::text), '') FROM generate_series(1, 250) i) WHERE id = {1};
UPDATE {t} SET a = 3 WHERE id = {1};
UPDATE {t} SET b = b || 'end' WHERE id = {1};
INSERT INTO {t} (id, a, b) SELECT {6}, a, b FROM {t} WHERE id = {1};
UPDATE {t} SET b = 'narrow' WHERE id = {1};

-- statement: wide compressible
INSERT INTO {t} (id, a, b) VALUES ({6}, 1, repeat('compressible ', 3000));
UPDATE {t} SET a = 2 WHERE id = {6};

-- statement: vacuum
VACUUM (ANALYZE) {t};

-- statement: vacuum full
VACUUM FULL {t};

-- statement: analyze
ANALYZE {t};

-- statement: reindex
REINDEX TABLE {t};

-- statement: reindex concurrently
REINDEX TABLE CONCURRENTLY {t};

-- statement: cluster
CLUSTER {t} USING {i}_pkey;

-- statement: update after maintenance
UPDATE {t} SET a = 2, b = b || 'after' WHERE id IN ({1}, {2});

-- statement: two-phase commit
BEGIN;
INSERT INTO {t} (id, a, b) VALUES ({6}, 1, 'prepared');
PREPARE TRANSACTION '{s}';
COMMIT PREPARED '{s}';

-- statement: two-phase commit of reads
BEGIN;
SELECT count(*) FROM (SELECT FROM {t} WHERE id = {1}) x;
PREPARE TRANSACTION '{s}';
ROLLBACK PREPARED '{s}';

-- statement: nextval
-- before
CREATE SEQUENCE {f};
GRANT ALL ON SEQUENCE {f} TO limited;
-- run
INSERT INTO {t} (id, a, b) VALUES ({6}, 1, 'nextval' || left(nextval('{f}')::text, 0));

-- statement: setval
-- before
CREATE SEQUENCE {f};
GRANT ALL ON SEQUENCE {f} TO limited;
-- run
INSERT INTO {t} (id, a, b) VALUES ({6}, 1, 'setval' || setval('{f}', 5));

-- statement: notify
BEGIN;
INSERT INTO {t} (id, a, b) VALUES ({6}, 1, 'notified');
NOTIFY x, 'payload';
COMMIT;

-- statement: pg_notify
INSERT INTO {t} (id, a, b) VALUES ({6}, 1, 'notified' || pg_notify('x', 'y'));

-- statement: listen
LISTEN x;
INSERT INTO {t} (id, a, b) VALUES ({6}, 1, 'listening');
UNLISTEN x;

-- statement: logical decoding message
INSERT INTO {t} (id, a, b) SELECT {6}, 1, left(pg_logical_emit_message(true, 'x', 'y')::text, 0) || 'message';

-- each: sequences
-- only: plain
SELECT nextval('other.wheel') FROM generate_series(1, 12);
SELECT nextval('other.back') FROM generate_series(1, 20);
SELECT nextval('other.down') FROM generate_series(1, 37);
SELECT nextval('other.down');
SELECT nextval('other.below') FROM generate_series(1, 40);
SELECT nextval('other.small') FROM generate_series(1, 9);
SELECT nextval('other.middle'), nextval('other.middle');
SELECT nextval('other.middle') + 1;
SELECT nextval('other.large') FROM generate_series(1, 9);
SELECT nextval('other.bottom') FROM generate_series(1, 10);
SELECT currval('other.back'), currval('other.below'), lastval();
SELECT setval('other.wheel', 6), nextval('other.wheel'), nextval('other.wheel'), currval('other.wheel'), lastval();
SELECT setval('other.wheel', 7, false), nextval('other.wheel'), nextval('other.wheel');
SELECT setval('other.back', -8), nextval('other.back'), nextval('other.back');
SELECT setval('other.down', -99), nextval('other.down');
SELECT setval('other.down', 11);
SELECT setval('other.small', 32767, false), nextval('other.small');
SELECT setval('other.small', 32768);
SELECT setval('other.large', 5), nextval('other.large'), setval('other.large', 9223372036854775807);
SELECT setval('other.wheel', 2);
ALTER SEQUENCE other.wheel RESTART;
SELECT nextval('other.wheel') + 0;
ALTER SEQUENCE other.down RESTART WITH -90;
SELECT nextval('other.down') + 0;
ALTER SEQUENCE other.wheel RESTART WITH 8;
DO $$ BEGIN ALTER SEQUENCE other.below RESTART WITH -7; PERFORM nextval('other.below'); ALTER SEQUENCE other.back RESTART; END $$;
SELECT nextval('other.below') + 0, nextval('other.back') + 0;
DISCARD SEQUENCES;
SELECT lastval();

-- each: changes of sequences
-- only: plain
ALTER SEQUENCE other.wheel INCREMENT 2;
ALTER SEQUENCE other.wheel NO CYCLE;
ALTER SEQUENCE other.wheel RESTART CACHE 5;
ALTER SEQUENCE other.wheel AS int2;
ALTER SEQUENCE other.wheel OWNED BY other.refreshed.a;
ALTER SEQUENCE other.wheel RENAME TO x;
ALTER SEQUENCE other.wheel SET UNLOGGED;
DROP SEQUENCE other.wheel;

-- each: large objects
-- only: plain
SELECT lo_create(0) > 0;
SELECT lo_creat(-1) > 0;
SELECT lo_import('/etc/hostname') > 0;
SELECT lo_create(4000000001), lo_from_bytea(4000000002, 'some bytes'), lo_from_bytea(4000000003, repeat('x', 10000)::bytea);
SELECT lo_put(4000000002, 5, 'other'), lo_put(4000000003, 5000, 'in the middle'), lo_put(4000000001, 9000, 'behind a hole');
SELECT convert_from(lo_get(4000000002), 'utf8'), md5(lo_get(4000000003)), md5(lo_get(4000000001));
DO $$ DECLARE fd int4 = lo_open(4000000003, 131072 | 262144); BEGIN
    PERFORM lo_lseek(fd, 100, 0), lowrite(fd, 'written'), lo_truncate(fd, 3000), lo_close(fd); END $$;
SELECT lo_export(4000000003, '{file}');
GRANT SELECT ON LARGE OBJECT 4000000002 TO limited;
ALTER LARGE OBJECT 4000000003 OWNER TO limited;
SELECT lo_unlink(4000000001);

-- each: changes of large objects' comments
-- only: plain
COMMENT ON LARGE OBJECT 4000000002 IS 'x';
SECURITY LABEL ON LARGE OBJECT 4000000002 IS 'x';

-- statement: value of 20 MB
-- only: plain
INSERT INTO {t} (id, a, b) VALUES ({6}, 1, repeat(md5('x'), 600000));
UPDATE {t} SET a = 2 WHERE id = {6};
UPDATE {t} SET b = b || 'x' WHERE id = {6};
DELETE FROM {t} WHERE id = {6};

-- statement: value of 80 MB
-- only: plain
INSERT INTO {t} (id, a, b) SELECT {6}, 1, string_agg(encode(sha512(i::text::bytea), 'base64'), '') FROM generate_series(1, 950000) i;

-- each: new tables
-- only: plain
CREATE TABLE {s}.x (a int);
CREATE TABLE {s}.x AS SELECT 1 a;
SELECT 1 a INTO {s}.x;
CREATE TABLE IF NOT EXISTS {s}.x (LIKE {t} INCLUDING ALL);
CREATE UNLOGGED TABLE {s}.x (id int4 REFERENCES {t});
CREATE TABLE {s}.x (a int) PARTITION BY LIST (a);
CREATE FOREIGN TABLE {s}.x (a int) SERVER loopback;
CREATE MATERIALIZED VIEW {s}.x AS SELECT 1 a;
CREATE SCHEMA x;
CREATE VIEW {s}.x AS SELECT 1 a;
CREATE SEQUENCE {s}.x;
CREATE INDEX ON {t} (a);

-- each: changes of tables
-- only: plain
ALTER TABLE {t} ADD COLUMN z int;
ALTER TABLE {t} DROP COLUMN a;
ALTER TABLE {t} ALTER a TYPE int8;
ALTER TABLE {t} ALTER b SET STORAGE EXTERNAL;
ALTER TABLE {t} ALTER a SET STATISTICS 10;
ALTER TABLE {t} SET (fillfactor = 50);
ALTER TABLE {t} SET UNLOGGED;
ALTER TABLE {t} DISABLE TRIGGER ALL;
ALTER TABLE {t} REPLICA IDENTITY FULL;
ALTER TABLE {t} ENABLE ROW LEVEL SECURITY;
ALTER TABLE {t} OWNER TO limited;
ALTER TABLE {t} SET SCHEMA public;
ALTER TABLE {t} RENAME TO y;
ALTER TABLE {t} RENAME COLUMN a TO y;
ALTER INDEX {t}_pkey RENAME TO y;
ALTER TABLE other.refreshed CLUSTER ON refreshed_pkey;
DROP TABLE {t};
DROP SCHEMA {s} CASCADE;
DROP INDEX other.spare;
DROP OWNED BY limited;
REASSIGN OWNED BY limited TO postgres;
COMMENT ON TABLE {t} IS 'x';
SECURITY LABEL ON TABLE {t} IS 'x';
GRANT SELECT ON {t} TO public;
REVOKE ALL ON {t} FROM public;
ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO public;
REFRESH MATERIALIZED VIEW other.summary;
REFRESH MATERIALIZED VIEW CONCURRENTLY other.summary;

-- each: other objects
-- only: plain
CREATE FUNCTION {s}.x() RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE PROCEDURE {s}.x() LANGUAGE sql AS '';
CREATE AGGREGATE {s}.x (int4) (SFUNC = int4pl, STYPE = int4);
CREATE TYPE {s}.x AS (a int);
CREATE TYPE {s}.x AS ENUM ('a');
CREATE TYPE {s}.x AS RANGE (SUBTYPE = int4);
ALTER TYPE mood ADD VALUE 'furious';
CREATE DOMAIN {s}.x AS int;
ALTER DOMAIN word ADD CHECK (VALUE <> 'never');
CREATE OPERATOR {s}.### (LEFTARG = int4, RIGHTARG = int4, FUNCTION = int4pl);
CREATE OPERATOR CLASS {s}.x FOR TYPE int4 USING btree AS OPERATOR 1 <;
CREATE CAST (int4 AS mood) WITH INOUT;
CREATE COLLATION {s}.x FROM "C";
CREATE CONVERSION {s}.x FOR 'LATIN1' TO 'UTF8' FROM iso8859_1_to_utf8;
CREATE TEXT SEARCH DICTIONARY {s}.x (TEMPLATE = simple);
CREATE TEXT SEARCH CONFIGURATION {s}.x (COPY = simple);
CREATE STATISTICS {s}.x ON a, b FROM {t};
CREATE TRIGGER x BEFORE UPDATE ON {t} FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger();
CREATE RULE x AS ON DELETE TO {t} DO ALSO SELECT 1;
CREATE POLICY x ON {t};
CREATE EVENT TRIGGER x ON ddl_command_end EXECUTE FUNCTION other.seen();
CREATE PUBLICATION x FOR TABLE {t};
CREATE EXTENSION intagg;
DROP EXTENSION isn CASCADE;
CREATE FOREIGN DATA WRAPPER x;
CREATE SERVER x FOREIGN DATA WRAPPER file_fdw;
CREATE USER MAPPING FOR limited SERVER loopback;
IMPORT FOREIGN SCHEMA public FROM SERVER loopback INTO {s};
CREATE LANGUAGE x HANDLER plpgsql_call_handler;
CREATE ACCESS METHOD x TYPE TABLE HANDLER heap_tableam_handler;
CREATE TRANSFORM FOR int4 LANGUAGE sql (FROM SQL WITH FUNCTION prsd_lextype(internal));
DO $$ BEGIN CREATE TABLE {s}.x (a int); END $$;

-- each: subscriptions
-- only: plain
CREATE SUBSCRIPTION x CONNECTION 'dbname=nowhere' PUBLICATION p WITH (connect = false, slot_name = NONE);
DROP SUBSCRIPTION IF EXISTS x;

-- each: objects of the server
-- only: plain
CREATE ROLE x;
ALTER ROLE limited CONNECTION LIMIT 5;
ALTER ROLE limited SET work_mem = '8MB';
DROP ROLE unused;
GRANT limited TO unused;
CREATE DATABASE x;
DROP DATABASE nowhere;
ALTER DATABASE postgres CONNECTION LIMIT 50;
ALTER DATABASE postgres SET work_mem = '8MB';
ALTER DATABASE postgres RENAME TO x;
CREATE TABLESPACE x LOCATION '/nowhere';
COMMENT ON ROLE limited IS 'x';

-- each: system catalogs
-- only: plain
UPDATE pg_class SET reltuples = 1 WHERE relname = 't';
DELETE FROM pg_description;
MERGE INTO pg_description USING (VALUES (1)) v ON false WHEN NOT MATCHED THEN DO NOTHING;
COPY pg_description FROM PROGRAM 'true';
DO $$ BEGIN SET LOCAL allow_system_table_mods = on; INSERT INTO pg_enum VALUES (1, 1, 1, 'x'); END $$;
UPDATE information_schema.sql_features SET comments = 'x';

-- each: foreign tables
-- only: plain
INSERT INTO other.distant VALUES (1);
UPDATE other.distant SET a = 2;
DELETE FROM other.distant;
COPY other.distant FROM PROGRAM 'echo 5';
SELECT count(*) >= 0 FROM other.distant;

-- each: commands of one member
-- only: plain
CHECKPOINT;
DISCARD ALL;
LOAD 'plpgsql';
SHOW work_mem;
SET work_mem = '8MB';
RESET work_mem;
REINDEX INDEX other.spare;
REINDEX SCHEMA other;
SELECT pg_advisory_lock(1), pg_advisory_unlock(1);
ANALYZE;
VACUUM (PARALLEL 0) other.refreshed;
CREATE TEMPORARY TABLE mine AS SELECT 1 a;
ALTER TABLE mine ADD b int4;
DROP TABLE mine;
CREATE TEMPORARY SEQUENCE mine;
DROP SEQUENCE mine;
CREATE TEMPORARY VIEW mine AS SELECT 1 a;
SELECT gen_random_uuid() IS NOT NULL, clock_timestamp() > '2000-01-01', txid_current() > 0;

-- each: maintenance in a block
-- only: plain
DO $$ BEGIN REINDEX TABLE {t}; END $$;
DO $$ BEGIN CLUSTER {t} USING t_pkey; END $$;

-- statement: truncate, then rows
-- final
TRUNCATE {t};
INSERT INTO {t} (id, a, b) VALUES ({6}, 1, 'after');

-- statement: truncate cascade
-- final
TRUNCATE {t} CASCADE;
INSERT INTO {t} (id, a, b) VALUES ({6}, 1, 'after');

-- statement: truncate only, restart identity
-- final
TRUNCATE ONLY {t} RESTART IDENTITY;

-- statement: truncate in a block
-- final
BEGIN;
INSERT INTO {t} (id, a, b) VALUES ({6}, 1, 'before');
TRUNCATE {t} CASCADE;
INSERT INTO {t} (id, a, b) VALUES ({6}, 1, 'kept');
SAVEPOINT s;
TRUNCATE {t} CASCADE;
INSERT INTO {t} (id, a, b) VALUES ({8}, 1, 'not kept');
ROLLBACK TO s;
UPDATE {t} SET b = 'kept, changed' WHERE id = {6};
COMMIT;

-- statement: truncate many
-- final
-- before
CREATE TABLE {s}.emptied (a int4);
INSERT INTO {s}.emptied VALUES (1), (1);
GRANT ALL ON {s}.emptied TO limited;
-- run
TRUNCATE {t}, {s}.emptied CASCADE;
INSERT INTO {t} (id, a, b) VALUES ({6}, 1, 'after');

-- statement: truncate, then copy freeze
-- final
BEGIN;
TRUNCATE {t};
COPY {t} (id, a, b) FROM STDIN (FREEZE);
{6}	1	cold
{7}	2	colder
\.
UPDATE {t} SET b = 'warm' WHERE id = {7};
COMMIT;
