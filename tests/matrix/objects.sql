-- What types, tables and statements of the matrix need.
SET check_function_bodies = off;
CREATE EXTENSION hstore;
CREATE EXTENSION citext;
CREATE EXTENSION ltree;
CREATE EXTENSION cube;
CREATE EXTENSION earthdistance;
CREATE EXTENSION seg;
CREATE EXTENSION isn;
CREATE EXTENSION intarray;
CREATE EXTENSION pg_trgm;
CREATE EXTENSION btree_gist;
CREATE EXTENSION btree_gin;
CREATE EXTENSION bloom;
CREATE EXTENSION amcheck;
CREATE EXTENSION file_fdw;
CREATE EXTENSION postgres_fdw;
CREATE EXTENSION autoinc;
CREATE EXTENSION insert_username;
CREATE EXTENSION lo;
CREATE EXTENSION moddatetime;
CREATE ROLE limited IN ROLE pg_write_server_files, pg_read_server_files, pg_maintain;
CREATE ROLE unused;
CREATE COLLATION ignores_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
ALTER TYPE mood ADD VALUE 'between' BEFORE 'ok';
CREATE TYPE pair AS (a int4, b text);
CREATE TYPE nested AS (a int4, p pair, l pair[], m mood[]);
CREATE TYPE textrange AS RANGE (subtype = text, collation = "C", multirange_type_name = textmultirange);
CREATE DOMAIN positive AS int4 CHECK (VALUE > 0);
CREATE DOMAIN word AS text COLLATE "C" CHECK (VALUE !~ ' ');
CREATE DOMAIN pairs AS pair[];
CREATE SCHEMA types;
CREATE SCHEMA other;
-- Values that have no input.
CREATE TABLE types.measured (a int4 DEFAULT 7, b int4);
INSERT INTO types.measured SELECT i % 10, i % 10 FROM generate_series(1, 1000) i;
CREATE STATISTICS types.together ON a, b FROM types.measured;
ANALYZE types.measured;
CREATE TABLE types.internal AS SELECT adbin node, stxdndistinct ndistinct, stxddependencies dependencies, stxdmcv mcv
    FROM pg_attrdef, pg_statistic_ext_data WHERE adrelid = 'types.measured'::regclass;
CREATE TABLE other.refreshed (a int4 PRIMARY KEY);
CREATE INDEX spare ON other.refreshed (a);
CREATE MATERIALIZED VIEW other.summary AS SELECT 1 a;
CREATE UNIQUE INDEX ON other.summary (a);
CREATE SEQUENCE other.wheel MINVALUE 3 MAXVALUE 7 START 5 CYCLE;
CREATE SEQUENCE other.back AS int2 INCREMENT -3 MINVALUE -9 MAXVALUE 10 START 8 CYCLE;
CREATE SEQUENCE other.down INCREMENT -3 MINVALUE -100 MAXVALUE 10 START 10;
CREATE SEQUENCE other.below AS int4 INCREMENT -1;
CREATE SEQUENCE other.small AS int2 START 32760;
CREATE SEQUENCE other.middle AS int4 START 2147483640 INCREMENT 5;
CREATE SEQUENCE other.large START 9223372036854775800 CACHE 4;
CREATE SEQUENCE other.bottom INCREMENT -1 START -9223372036854775800 MINVALUE -9223372036854775808;
CREATE FUNCTION other.seen() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
CREATE SERVER loopback FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '1');
CREATE USER MAPPING FOR postgres SERVER loopback;
CREATE FOREIGN TABLE other.distant (a int4) SERVER loopback;

CREATE SCHEMA matrix;
-- The table that tells what indexes to look into, and for what.
CREATE TABLE matrix.probe (n int4 PRIMARY KEY, tab text NOT NULL, index text NOT NULL, condition text NOT NULL);

-- Rows of all permanent tables of the schemas that are like the pattern, as text; the long ones as digests.
CREATE FUNCTION matrix.contents(pattern text) RETURNS TABLE (tab text, line text) LANGUAGE plpgsql AS $$
DECLARE one oid;
BEGIN
    FOR one IN SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
        WHERE relkind = 'r' AND relpersistence = 'p' AND nspname LIKE pattern ORDER BY nspname, relname LOOP
        RETURN QUERY EXECUTE format('SELECT %L, CASE WHEN length(r) > 1000 THEN left(r, 60) || md5(r) ELSE r END FROM (SELECT t::text r FROM ONLY %s t) x ORDER BY 2',
            one::regclass::text, one::regclass);
    END LOOP;
END $$;

-- What the probes find by their indexes, where that is not what a scan of the table finds, and indexes that
-- are not looked into. Each has its turn without the others of its table, so not in a replicated database.
CREATE FUNCTION matrix.misses() RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE i record; p matrix.probe; other text; line text; looked bool;
    indexed text; scanned text; query text; found text[] := '{}';
BEGIN
    -- Else the key of the table gives the rows in their order.
    SET LOCAL enable_presorted_aggregate = off;
    FOR i IN SELECT tab, index FROM matrix.probe GROUP BY 1, 2 ORDER BY min(n) LOOP
        looked := false;
        BEGIN
            FOR other IN SELECT indexrelid::regclass FROM pg_index JOIN pg_class c ON c.oid = indexrelid
                WHERE indrelid = i.tab::regclass AND relname <> lower(i.index)
                    AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid) LOOP
                EXECUTE 'DROP INDEX ' || other;
            END LOOP;
            FOR p IN SELECT * FROM matrix.probe WHERE tab = i.tab AND index = i.index ORDER BY n LOOP
                query := format('SELECT string_agg(id::text, '','' ORDER BY id) FROM (SELECT id FROM %s WHERE %s) x', p.tab, p.condition);
                PERFORM set_config('enable_seqscan', 'on', true), set_config('enable_indexscan', 'off', true),
                    set_config('enable_indexonlyscan', 'off', true), set_config('enable_bitmapscan', 'off', true);
                EXECUTE query INTO scanned;
                PERFORM set_config('enable_seqscan', 'off', true), set_config('enable_indexscan', 'on', true),
                    set_config('enable_indexonlyscan', 'on', true), set_config('enable_bitmapscan', 'on', true);
                EXECUTE query INTO indexed;
                FOR line IN EXECUTE 'EXPLAIN ' || query LOOP
                    looked := looked OR line ~ ('\m' || lower(i.index) || '\M');
                END LOOP;
                IF indexed IS DISTINCT FROM scanned THEN
                    found := found || format('index %s of %s, %s: finds %s, a scan finds %s', p.index, p.tab, p.condition, indexed, scanned);
                END IF;
            END LOOP;
            RAISE EXCEPTION USING ERRCODE = 'P0001', MESSAGE = 'undo';
        EXCEPTION WHEN raise_exception THEN
        END;
        IF NOT looked THEN
            found := found || format('nothing looks into index %s of %s', i.index, i.tab);
        END IF;
    END LOOP;
    RETURN QUERY SELECT unnest(found);
END $$;
